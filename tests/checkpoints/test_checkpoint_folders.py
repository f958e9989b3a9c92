"""Where checkpoints are found: folders, the box, the hub's cache, a hub; and what is said when they are not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import langevin
from langevin.checkpoints import folders
from langevin.pipelines.base import DiffusionPipeline
from tests.checkpoints.nets import Net, names, one_clear_line, same

NET = Net().eval()
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repo: str, source: Path) -> Path:
    """Lay a folder into a hub cache as huggingface_hub does: blobs, and a snapshot of links to them."""
    place = cache / f"models--{repo.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(COMMIT)
    (place / "blobs").mkdir()
    for name in names(source):
        content = (source / name).read_bytes()
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


@pytest.fixture
def saved(tmp_path):
    NET.save_pretrained(tmp_path / "saved")
    NET.save_pretrained(tmp_path / "saved/unet", max_shard_size="500B")
    return tmp_path / "saved"


def test_a_local_folder_comes_first(saved, monkeypatch):
    (saved.parent / "owner/name").mkdir(parents=True)
    monkeypatch.chdir(saved.parent)
    assert folders.resolve("owner/name") == Path("owner/name")
    assert folders.resolve(saved) == saved


def test_models_in_the_box_are_found_by_name(saved, monkeypatch):
    monkeypatch.setattr(folders, "BOX", saved.parent)
    assert same(Net.from_pretrained("langevin/saved"), NET)
    assert folders.box_models() == ["langevin/saved"]
    with one_clear_line("no 'langevin/circles' in the box", "langevin/saved"):
        Net.from_pretrained("langevin/circles")


def test_what_is_in_the_hubs_cache_loads_offline(saved, tmp_path):
    snapshot = cached(tmp_path / "cache", "owner/name", saved)
    options = {"cache_dir": tmp_path / "cache"}
    assert same(Net.from_pretrained("owner/name", **options), NET)  # HF_HUB_OFFLINE=1 in tests
    assert same(Net.from_pretrained("owner/name", subfolder="unet", local_files_only=True, **options), NET)
    assert same(Net.from_pretrained("owner/name", revision=COMMIT, **options), NET)
    assert same(Net.from_pretrained("owner/name", use_auth_token=True, resume_download=True, **options), NET)
    assert Net.load_config("owner/name", return_commit_hash=True, **options)[1] == COMMIT
    assert folders.resolve("owner/name", **options) == snapshot
    with one_clear_line("owner/name", "not in the cache", "local_files_only=True or HF_HUB_OFFLINE=1"):
        Net.from_pretrained("owner/name", revision="other", **options)


def test_links_in_the_cache_must_stay_within_their_model(saved, tmp_path):
    snapshot = cached(tmp_path / "cache", "owner/name", saved)
    other = cached(tmp_path / "cache", "owner/other", saved)
    weights = snapshot / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.symlink_to(other / "diffusion_pytorch_model.safetensors")
    with one_clear_line("leads out of its folder"):
        Net.from_pretrained(snapshot)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/nowhere/at/all", ["no folder /nowhere/at/all"]),
        ("./relative", ["no folder", "relative"]),
        ("a/b/c", ["no folder"]),
        ("owner/name", ["no folder", "not in the cache", "switched off"]),
        ("just-a-name", ["just-a-name", "not in the cache"]),
        ("../up", ["no folder"]),
        ("", []),
    ],
)
def test_what_is_nowhere_is_told_in_one_line(name, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for door in (DiffusionPipeline, Net):
        with one_clear_line(*words):
            door.from_pretrained(name, cache_dir=tmp_path)


def test_a_file_instead_of_a_folder(saved):
    with one_clear_line("is a file"):
        Net.from_pretrained(saved / "config.json")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with one_clear_line("pip install huggingface_hub"):
        Net.from_pretrained("owner/name")


def test_inside_lets_nothing_out(saved, tmp_path):
    assert folders.inside(saved, "unet", "config.json") == saved / "unet/config.json"
    assert folders.inside(saved, None) == saved
    (saved / "away").symlink_to("/etc")
    (saved / "near").symlink_to("unet")
    assert folders.inside(saved, "near").is_dir()
    for bad in ("..", "../x", "/etc/passwd", "unet/../../x", "away/passwd", "away"):
        with one_clear_line("leads out of its folder"):
            folders.inside(saved, bad)
    (tmp_path / "link").symlink_to(saved)
    assert folders.inside(tmp_path / "link", "unet").is_dir()


def test_local_models_lists_the_box_and_the_cache(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "BOX", tmp_path / "box")
    NET.save_pretrained(tmp_path / "box/tiny")
    (tmp_path / "box/no-model").mkdir()
    cached(tmp_path / "cache", "owner/name", saved)
    (tmp_path / "cache/models--half--downloaded/blobs").mkdir(parents=True)
    (tmp_path / "cache/version.txt").write_text("1")
    found = folders.local_models(tmp_path / "cache")
    assert [(m.name, m.kind) for m in found] == [("langevin/tiny", "Net"), ("owner/name", "Net")]
    assert all(m.size > 1000 for m in found)
    for variables in (
        {"HF_HUB_CACHE": str(tmp_path / "cache")},
        {"HF_HOME": str(tmp_path / "home")},
        {"XDG_CACHE_HOME": str(tmp_path / "xdg")},
    ):
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        place = subprocess.check_output(
            [sys.executable, "-c", "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"]
        )
        assert str(folders._hub_cache()) == place.decode().strip()


# -- a hub of our own: what is downloaded


class Hub(ThreadingHTTPServer):
    """Answers the few requests of huggingface_hub that downloading needs, for one repository."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.asked = files, []
        super().__init__(("127.0.0.1", 0), HubRequest)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server_port}"


class HubRequest(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        files = self.server.files
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/name/tree"):
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            return self.answer(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/owner/name/revision/none"):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": "owner/name", "modelId": "owner/name", "sha": COMMIT, "siblings": siblings, "tags": []}
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        prefix, _, name = path.partition(f"/resolve/{COMMIT}/")
        if not name:
            prefix, _, name = path.partition("/resolve/main/")
        if prefix == "/owner/name" and name in files:
            if self.command == "GET":
                self.server.asked.append(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(200, files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        missing = "RepoNotFound" if path.startswith("/api") else "EntryNotFound"
        return self.answer(404, b"", {"X-Error-Code": missing})

    do_HEAD = do_GET

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


ASK = """
import json, sys
from langevin.checkpoints import folders
from langevin.models.base import _network_files
from langevin.pipelines.base import DiffusionPipeline
answers = []
for name, what, options in json.loads(sys.argv[1]):
    try:
        if what == "pipeline":
            answers.append(DiffusionPipeline.download(name, **options))
        else:
            answers.append(str(folders.resolve(name, choose=_network_files("unet", None, None), **options)))
    except OSError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def ask(hub: str, home: Path, *requests: tuple[str, str, dict]) -> list[str]:
    """In a process of its own, since huggingface_hub reads its environment once: folders, or what errors say."""
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", ASK, json.dumps(requests)]
    return json.loads(subprocess.check_output(command, env=environment, stderr=subprocess.DEVNULL))


@pytest.fixture
def hub():
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "safety_checker": [None, None],
    }
    files = ["README.md", "pipeline.py", "v1-5.ckpt", "v1-5.safetensors", "safety_checker/model.safetensors"]
    files += ["scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
    files += ["unet/config.json", "vae/config.json", "text_encoder/config.json", "unet/model.onnx", "unet/code.py"]
    stem = "diffusion_pytorch_model"
    files += [f"unet/{stem}.{form}" for form in ("bin", "fp16.bin", "fp16.safetensors", "safetensors", "msgpack")]
    files += [f"vae/{stem}.bin", f"vae/{stem}.fp16.bin", "unet/openvino/model.xml"]
    files += ["text_encoder/model.safetensors.index.json", "text_encoder/model.safetensors.index.fp16.json"]
    files += ["text_encoder/pytorch_model.bin"]
    files += [f"text_encoder/model{mark}-0000{k}-of-00002.safetensors" for k in (1, 2) for mark in ("", ".fp16")]
    server = Hub({name: name.encode() for name in files} | {"model_index.json": json.dumps(index).encode()})
    yield server
    server.shutdown()


CONFIGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]


WEIGHTS = [
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.bin",
]
WEIGHTS_FP16 = [
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.fp16-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.fp16.bin",
]


def test_only_what_is_needed_is_downloaded_and_it_is_there_when_the_hub_is_gone(hub, tmp_path):
    half = {"variant": "fp16", "cache_dir": str(tmp_path / "half")}
    net = {"cache_dir": str(tmp_path / "net")}
    whole, halves, network, unknown, no_revision = ask(
        hub.address,
        tmp_path,
        ("owner/name", "pipeline", {}),
        ("owner/name", "pipeline", half),
        ("owner/name", "network", net),
        ("owner/other", "pipeline", {}),
        ("owner/name", "pipeline", {"revision": "none"}),
    )
    assert names(Path(whole)) == sorted(CONFIGS + WEIGHTS)
    assert names(Path(halves)) == sorted(CONFIGS + WEIGHTS_FP16)
    assert names(Path(network)) == ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
    assert set(hub.asked) == {*CONFIGS, *WEIGHTS, *WEIGHTS_FP16}
    assert (Path(whole) / "unet/config.json").read_text() == "unet/config.json"
    assert "no 'owner/other'" in unknown
    assert "token=" in unknown
    assert "'none'" in no_revision

    hub.shutdown()
    hub.server_close()
    again, gone = ask(hub.address, tmp_path, ("owner/name", "pipeline", {}), ("owner/other", "pipeline", {}))
    assert again == whole
    assert "the hub could not be asked" in gone
    assert not any("\n" in line for line in (unknown, no_revision, gone))


def test_a_repository_that_is_no_pipeline(hub, tmp_path):
    del hub.files["model_index.json"]
    (said,) = ask(hub.address, tmp_path, ("owner/name", "pipeline", {}))
    assert "has no model_index.json" in said
    assert "\n" not in said


def test_importing_langevin_imports_nothing_heavy():
    code = "import sys; from langevin import StableDiffusionPipeline; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.check_output([sys.executable, "-c", code], env=environment).decode().split()
    assert not {"transformers", "huggingface_hub", "accelerate", "diffusers", "requests", "httpx"} & set(loaded)
    assert langevin.DiffusionPipeline is DiffusionPipeline


def test_uploading(saved, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))
            return type("Repo", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    NET.save_pretrained(saved, push_to_hub=True, token="secret", private=True)
    NET.save_config(saved, push_to_hub=True, repo_id="named", commit_message="hello")
    assert calls[0] == "secret"
    assert calls[1] == ("saved", {"private": True, "exist_ok": True})
    assert calls[2]["repo_id"] == "me/saved"
    assert calls[2]["folder_path"] == saved
    assert calls[4][0] == "named"
    assert calls[5]["commit_message"] == "hello"
