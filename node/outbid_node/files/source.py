"""What may be pulled: `hf:org/name[@revision][:file]`, `file:/path`, `https://…`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from outbid_contracts.errors import InvalidRequest
from outbid_contracts.files import is_model_name

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,127}")
_PART = re.compile(r"-\d{5}-of-\d{5}$")

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
SINGLE_FILES = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class Hub:
    """A repository of the Hugging Face hub, or one file of it. An empty `revision` is its main branch."""

    repo: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        return f"hf:{self.repo}{'@' if self.revision else ''}{self.revision}{':' if self.file else ''}{self.file}"

    @property
    def model_name(self) -> str:
        return _name_of(self.file) if self.file else _plain(self.repo.partition("/")[2])


@dataclass(frozen=True, slots=True)
class Local:
    """A file or folder of the node's own disk."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"

    @property
    def model_name(self) -> str:
        return _plain(self.path.name) if self.path.is_dir() else _name_of(self.path.name)


@dataclass(frozen=True, slots=True)
class Web:
    """One file behind a URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def file(self) -> str:
        return PurePosixPath(unquote(urlsplit(self.url).path)).name

    @property
    def model_name(self) -> str:
        return _name_of(self.file)


Source = Hub | Local | Web


def parse(text: str) -> Source:
    """Raises InvalidRequest, saying what may be pulled."""
    scheme, _, rest = text.partition(":")
    if scheme == "hf":
        return _hub(rest)
    if scheme == "file":
        return _local(rest)
    if scheme in ("https", "http"):
        return _web(text)
    raise InvalidRequest(
        f"{text!r} is no source of a model; write hf:org/name, hf:org/name:file.gguf, file:/path or https://host/file"
    )


def refuse_pickle(path: str) -> None:
    """Raises InvalidRequest for files that run code when they are loaded."""
    if path.lower().endswith(PICKLES):
        raise InvalidRequest(
            f"{path} is a pickle checkpoint: loading one runs whatever code is in it. Look for the same model as "
            ".safetensors or .gguf"
        )


def relative(path: str) -> str:
    """A path inside a model's folder, as it came from somebody else. Raises InvalidRequest where it leads out."""
    pure = PurePosixPath(path)
    plain = path.isprintable() and "\\" not in path and ":" not in path and str(pure) == path and len(path) <= 500
    if not plain or pure.is_absolute() or any(part in ("", ".", "..") for part in pure.parts):
        raise InvalidRequest(f"{path!r} is not the name of a file inside a model's folder")
    return path


def _hub(rest: str) -> Hub:
    place, _, file = rest.partition(":")
    repo, _, revision = place.partition("@")
    if _REPO.fullmatch(repo) is None or ".." in repo or ".." in revision:
        raise InvalidRequest(f"hf:{rest} does not name a repository; write hf:org/name, e.g. hf:stabilityai/sd-turbo")
    if revision and _REVISION.fullmatch(revision) is None:
        raise InvalidRequest(f"{revision!r} is no revision; write a branch, a tag or a commit after the @")
    if file:
        refuse_pickle(relative(file))
    return Hub(repo, revision, file)


def _local(rest: str) -> Local:
    path = Path(rest.removeprefix("//")).expanduser()
    if not path.is_absolute():
        raise InvalidRequest(f"file:{rest} must be a whole path, e.g. file:/home/me/model.gguf")
    return Local(path)


def _web(text: str) -> Web:
    parts = urlsplit(text)
    web = Web(text)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise InvalidRequest(f"{text} is not encrypted, so anybody on the way could change it; use https")
    refuse_pickle(web.file)
    if not web.file.lower().endswith(SINGLE_FILES):
        raise InvalidRequest(f"{text} does not name a .gguf or .safetensors file; for a repository write hf:org/name")
    return web


def _name_of(file: str) -> str:
    return _plain(_PART.sub("", PurePosixPath(file).stem))


def _plain(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._").lower()[:96]
    return name if is_model_name(name) else "model"
