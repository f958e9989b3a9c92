"""The command line: ``langevin generate | models | info | again``. Nothing is imported before it is called."""


def main() -> None:
    """Entry point of the ``langevin`` command."""
    from langevin.cli.app import app

    app(prog_name="langevin")
