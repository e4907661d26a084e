"""Build the llama-cpp-python wheel once for this machine and keep it outside the repository.

The package comes as source only and takes minutes to compile. The wheel is kept in
`${XDG_CACHE_HOME:-~/.cache}/outbid/wheels/<key>/`, where the key holds everything that makes a wheel unfit elsewhere:
version, system, processor, its instruction sets, the C library and the build flags. (Not Python's version: the wheel
talks to the library through ctypes and is tagged py3-none.)

    python tools/engine.py PYTHON    print the path of the wheel, building it with that interpreter's pip if need be
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import process

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.3.36"
# From the package index; pip compares it before it runs anything of the package.
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

# ggml's option: the processor flags, as Linux names them, that it needs.
X86_SETS = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
    "GGML_BMI2": {"bmi2"},
    "GGML_AVX_VNNI": {"avx_vnni"},
    "GGML_AVX512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"},
    "GGML_AVX512_VBMI": {"avx512vbmi"},
    "GGML_AVX512_VNNI": {"avx512_vnni"},
    "GGML_AVX512_BF16": {"avx512_bf16"},
}


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """The processor's features out of Linux's /proc/cpuinfo; empty elsewhere."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


def build_flags(system: str, machine: str, features: frozenset[str]) -> list[str]:
    """CMake options for this machine.

    On x86 Linux the instruction sets are named one by one instead of -march=native (GGML_NATIVE), because native code
    on a processor with AMX dies of SIGSEGV at the first decode (ggml_backend_amx_mul_mat, seen with 0.3.36). Leaving
    AMX out costs no speed; leaving out AVX2, FMA and F16C costs a great deal, so each set that this processor has is
    switched on. The multimodal library is not used, and not built.
    """
    flags = ["-DLLAVA_BUILD=OFF"]
    if system != "Linux" or machine not in ("x86_64", "AMD64") or not features:
        return flags  # Apple silicon, ARM: native is right; Windows: ggml finds the sets itself and leaves AMX out
    flags += ["-DGGML_NATIVE=OFF", "-DGGML_AMX_TILE=OFF", "-DGGML_AMX_INT8=OFF", "-DGGML_AMX_BF16=OFF"]
    for option, needs in X86_SETS.items():
        flags.append(f"-D{option}={'ON' if needs <= features else 'OFF'}")
    return flags


def this_machine() -> tuple[dict[str, str], list[str]]:
    """What the wheel depends on, and its build flags."""
    cpuinfo = Path("/proc/cpuinfo")
    features = cpu_flags(cpuinfo.read_text()) if cpuinfo.exists() else frozenset[str]()
    flags = build_flags(platform.system(), platform.machine(), features)
    native = "" if "-DGGML_NATIVE=OFF" in flags else " ".join(sorted(features)) or platform.processor()
    made_of = {
        "version": VERSION,
        "system": platform.system(),
        "machine": platform.machine(),
        "libc": "-".join(platform.libc_ver()),
        "cpu": native,
        "flags": " ".join(flags),
    }
    return made_of, flags


def folder(made_of: dict[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    name = f"llama-cpp-python-{VERSION}-{made_of['system']}-{made_of['machine']}-{digest}".lower()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "outbid" / "wheels" / name


def wheel(python: Path) -> Path:
    """The wheel for this machine, built now if it was not before. SystemExit with a reason where it cannot be."""
    made_of, flags = this_machine()
    home = folder(made_of)
    found = sorted(home.glob("llama_cpp_python-*.whl"))
    if not found:
        _check_compiler()
        _build(python, home, made_of, flags)
        found = sorted(home.glob("llama_cpp_python-*.whl"))
    return found[0]


def _check_compiler() -> None:
    if platform.system() != "Windows" and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        raise SystemExit(
            "llama-cpp-python must be compiled, and there is no C++ compiler here.\n"
            "Install one (Debian: apt install g++ make; macOS: xcode-select --install) and try again.\n"
            "`make demo` needs none: it uses the prebuilt engine."
        )


def _build(python: Path, home: Path, made_of: dict[str, str], flags: list[str]) -> None:
    """Build in a scratch folder and move the result in one step, so that a half-written wheel is never found."""
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix="building-") as scratch:
        out = Path(scratch) / "out"
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SHA256}\n")
        environ = os.environ | {
            "CMAKE_ARGS": " ".join(flags),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
            "PIP_CONSTRAINT": (ROOT / "constraints.txt").as_uri(),
            "PIP_BUILD_CONSTRAINT": (ROOT / "constraints.txt").as_uri(),
        }
        pip: list[str | Path] = [python, "-m", "pip", "wheel", "-v", "--no-deps", "--no-cache-dir", "--require-hashes"]
        process.run(
            [*pip, "--no-binary", "llama-cpp-python", "-w", out, "-r", wanted],
            f"compiling llama-cpp-python {VERSION} for this processor: once, 4 minutes on two cores",
            log=home.parent / f"{home.name}.log",
            environ=environ,
            gently=True,
        )
        (out / "made-of.json").write_text(json.dumps(made_of, indent=2) + "\n")
        if not home.exists():
            out.replace(home)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(wheel(Path(sys.argv[1])))
