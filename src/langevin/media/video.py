"""Videos: frames that know what made them, into files and from files.

GIF, WebP and PNG files are read and written with Pillow alone; MP4 files with PyAV, ``pip install 'langevin[video]'``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from langevin.media.convert import to_pictures
from langevin.media.load import WrongPicture, open_safely, opened, printable, reason, to_rgb
from langevin.media.mp4 import VIDEO_EXTENSIONS, is_mp4
from langevin.media.picture import atomic_file, exif_text, png_text
from langevin.media.settings import read_settings, settings_to_json

FPS = 8.0
"""Frames a second where nothing else is said: what text-to-video models were trained on."""
_FRAMES = 100_000


class Video(list[Image.Image]):
    """The frames of a video, PIL images of one size, with ``settings``: the plain dict that made them, or None.

    A list like any other; what is cut from it (``video[4:]``) is a plain list, since the settings would not make that
    again.

    Args:
        frames: the images.
        settings: what made them.
        fps: frames a second.

    Example:
        >>> video = pipe("a red circle moves left", num_frames=16, output_type="pil", seed=7).frames[0]
        >>> video.save("circle.webp")
        >>> load_video("circle.webp").settings["seed"]
        7
    """

    filename: str = ""

    def __init__(
        self, frames: Iterable[Image.Image] = (), settings: dict[str, Any] | None = None, fps: float = FPS
    ) -> None:
        super().__init__(frames)
        self.settings = settings
        self.fps = fps

    def save(self, path: str | os.PathLike, fps: float | None = None) -> None:
        """Write a file, with the settings in it, in one move: .mp4 (H.264), .gif, .webp or .png, by the path's end.

        WebP and PNG keep every pixel as it is; a GIF has 256 colours a frame, and MP4 loses a little everywhere.

        Args:
            path: the file; one that is there is replaced.
            fps: frames a second; the video's own if None.

        Raises:
            ValueError: another end, no frames, frames of several sizes, odd sides for an MP4, or a rate below 0.1 or
                above 240.
            ImportError: an MP4 is wanted and PyAV is not there.
            OSError: the file cannot be written; an old one is then still there, whole.
        """
        rate = self.fps if fps is None else fps
        kind = os.path.splitext(os.fspath(path))[1].lower()
        if kind not in VIDEO_EXTENSIONS:
            raise ValueError(f"cannot save {os.fspath(path)!r}: use {', '.join(VIDEO_EXTENSIONS[:-1])} or .png")
        if not 0.1 <= rate <= 240:
            raise ValueError(f"fps is {rate}; 0.1 to 240 frames a second can be written")
        frames = [to_rgb(opened(frame, quiet=True), None) for frame in self]
        sizes = sorted({frame.size for frame in frames})
        if len(sizes) != 1:
            raise ValueError(f"the frames have {sizes or 'no'} sizes (width, height); give frames of one size")
        settings = None if self.settings is None else {**self.settings, "fps": rate}
        write = _write_mp4 if kind == ".mp4" else _write_animation
        write(path, frames, rate, settings, kind)


def load_video(path: str | os.PathLike) -> Video:
    """The frames of a GIF, WebP, PNG or MP4 file, in mode "RGB", with the settings that it carries.

    Raises FileNotFoundError, PIL.UnidentifiedImageError for what is none of these, :class:`WrongPicture`, a ValueError,
    for what is damaged or too large, and ImportError for an MP4 without PyAV.
    """
    name = printable(os.fspath(path))
    if is_mp4(path):
        frames, fps = _read_mp4(path, name)
        settings = read_settings(path)
    else:
        with open_safely(path) as image:
            settings = read_settings(image)
            frames, fps = _read_animation(image, name, settings or {})
    video = Video(frames, settings, fps)
    video.filename = os.path.abspath(path)
    return video


def to_videos(pixels: Tensor, settings: Sequence[dict[str, Any] | None]) -> list[Video]:
    """``(batch, channels, frames, height, width)`` in [-1, 1] to one video each; ``settings`` holds one dict each."""
    each = pixels.transpose(1, 2)
    return [Video(to_pictures(frames), its) for frames, its in zip(each, settings, strict=True)]


def listed_videos(video: Any, latent_channels: int = 0) -> Tensor | list[Any]:
    """Videos as a caller gave them: a list, of each its frames as :func:`langevin.media.checks.pictures` takes them; or
    latents ``(videos, latent_channels, frames, h, w)`` as they are.

    Raises:
        WrongPicture: they are none of what is allowed.
    """
    if isinstance(video, (np.ndarray, Tensor)):
        if isinstance(video, Tensor) and video.ndim == 5 and video.shape[1] == latent_channels:
            frames_first = video.shape[2] in (1, 3)  # and these are channels
            if not frames_first:
                return video
        if video.ndim in (4, 5):
            return [video] if video.ndim == 4 else [*video]
    elif isinstance(video, (list, tuple)) and len(video):
        first = video[0]
        if isinstance(first, Image.Image) or getattr(first, "ndim", 0) in (2, 3):
            return [video]
        each = [listed_videos(one) for one in video]
        if all(len(one) == 1 for one in each):
            return [one[0] for one in each]
    given = f"{type(video).__name__} of shape {tuple(video.shape)}" if hasattr(video, "shape") else type(video).__name__
    raise WrongPicture(
        f"video is a {given}; give its frames in a list, an array (frames, height, width, channels), a tensor "
        "(frames, channels, height, width), or a list of these; load_video(path) reads a file"
    )


# -- files of Pillow's


def _write_animation(
    path: str | os.PathLike, frames: list[Image.Image], fps: float, settings: dict[str, Any] | None, kind: str
) -> None:
    more: dict[str, Any] = {"format": {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}[kind], "loop": 0}
    if kind == ".webp":
        more |= {"lossless": True, "quality": 60}
    if settings is not None:
        if kind == ".gif":
            more["comment"] = settings_to_json(settings).encode("ascii")
        elif kind == ".webp":
            more["exif"] = exif_text(settings)
        else:
            more["pnginfo"] = png_text(settings)
    with atomic_file(path) as file:
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=round(1000 / fps), **more)


def _read_animation(image: Any, name: str, settings: Mapping[str, Any]) -> tuple[list[Image.Image], float]:
    """Frames and their number a second. Writers make one of frames that are alike, which shows for as long; where all
    are, of some formats only the settings say how many there were.
    """
    told, count = settings.get("fps"), settings.get("num_frames")
    frames, times = [], []
    try:
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            frames.append(to_rgb(image).copy())
            times.append(float(image.info.get("duration") or 0))
    except Exception as error:
        raise WrongPicture(f"{name} cannot be read ({reason(error)}); give a file that is whole") from error
    known = isinstance(told, (int, float)) and 0.1 <= told <= 240
    unit = 1000 / told if known else min(times) or 1000 / FPS  # type: ignore[operator]
    counts = [max(1, round(time / unit)) for time in times]
    if len(frames) == 1 and type(count) is int:
        counts = [max(1, count)]
    if sum(counts) > _FRAMES:
        raise WrongPicture(f"{name} has more than {_FRAMES} frames, too many to be read")
    return [frame for frame, count in zip(frames, counts, strict=True) for _ in range(count)], 1000 / unit


# -- MP4


def check_writing(extension: str) -> None:
    """Raises ImportError if files that end so cannot be written here."""
    if extension == ".mp4":
        _av()


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("MP4 files need PyAV: pip install 'langevin[video]'; or use .gif or .webp") from error
    return av


def _write_mp4(
    path: str | os.PathLike, frames: list[Image.Image], fps: float, settings: dict[str, Any] | None, kind: str
) -> None:
    av = _av()
    width, height = frames[0].size
    if width % 2 or height % 2:
        raise ValueError(f"the frames are {width}x{height}; an MP4 has even sides: use .webp, .gif or .png")
    with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
        if settings is not None:
            container.metadata["comment"] = settings_to_json(settings)
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options={"crf": "16"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _read_mp4(path: str | os.PathLike, name: str) -> tuple[list[Image.Image], float]:
    av = _av()
    frames: list[Image.Image] = []
    try:
        with open(path, "rb") as file, av.open(file, format="mp4") as container:  # no other format, and no other file
            stream = container.streams.video[0]
            _check_size(stream.width, stream.height, name)
            for frame in container.decode(stream):
                frames.append(frame.to_image())
                if len(frames) > _FRAMES:
                    raise WrongPicture(f"{name} has more than {_FRAMES} frames, too many to be read")
            return frames, float(stream.average_rate or FPS)
    except WrongPicture:
        raise
    except Exception as error:  # damaged files make PyAV raise a dozen different things
        raise WrongPicture(f"{name} cannot be read ({reason(error)}); give a file that is whole") from error


def _check_size(width: int, height: int, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit and width * height > limit:
        raise WrongPicture(f"{name} is {width} x {height} pixels, more than {limit}, too many to be opened safely")
