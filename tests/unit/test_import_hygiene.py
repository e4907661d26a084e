"""What a static import graph cannot prove: which modules a fresh interpreter holds after an import."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODELS = ("onnxruntime", "httpx", "torch", "llama_cpp", "xllamacpp", "diffusers", "transformers", "numpy", "PIL")
FACES = ("textual", "duckdb", "zeroconf", "rich", "outbid_node", "outbid_capabilities", "outbid_tui")


def _loaded_after(statement: str) -> set[str]:
    """Top-level modules of a fresh interpreter after `statement`."""
    program = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import outbid", (*MODELS, *FACES, "click", "nats", "aiohttp")),
        ("import outbid.sync", (*MODELS, *FACES, "click", "nats", "aiohttp")),
        ("import outbid.cli", (*MODELS, "textual", "duckdb", "zeroconf", "outbid_node", "outbid_capabilities")),
        ("import outbid_node.app", (*MODELS, "textual", "outbid", "outbid_capabilities")),
        ("import outbid_node.__main__", (*MODELS, "textual", "outbid", "outbid_capabilities", "duckdb", "aiohttp")),
        ("from outbid_node import declarations; assert declarations.load()", (*MODELS, "zmq", "textual", "duckdb")),
        ("import outbid_contracts.schema", (*MODELS, *FACES, "nats", "zmq", "psutil")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_import_loads_nothing_it_should_not(statement: str, forbidden: tuple[str, ...]) -> None:
    assert _loaded_after(statement).isdisjoint(forbidden)
