"""`make demo`: a mesh of three nodes on this machine, of different speeds, that bids for real chats. Leaves nothing
running.

Every step is a command you could type yourself; it is printed before it runs.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from outbid.connection import local_node
from outbid.daemons import Daemon, stop
from outbid_contracts.errors import OutbidError

MACHINES = {
    "desktop": {"limits.cpu_share": 1.0, "power.idle_w": 60, "power.busy_w": 250},
    "laptop": {"limits.cpu_share": 0.6, "power.idle_w": 6, "power.busy_w": 45},
    "pi": {"limits.cpu_share": 0.35, "power.idle_w": 3, "power.busy_w": 9},
}
"""Three speeds on one processor (the part of the time a runner may work), and what such machines draw, in watts."""

START_TIMEOUT_S = 30.0

KILL_AFTER = 80
"""Bytes of an answer before the node that gives it is killed."""


class Demo:
    """The nodes of the demo and the terminal it talks to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mesh = f"demo-{secrets.token_hex(4)}"
        self.nodes: dict[str, Daemon] = {}
        self.home = "pi"

    def run(self) -> None:
        _title("Three nodes start on this machine; zeroconf introduces them to each other")
        for name, settings in MACHINES.items():
            self._start(name, settings)
        self._wait_until_whole()
        self.outbid("nodes")
        self.outbid("models")

        _title("A first chat, asked on the pi. No node has the model in memory, so loading time is part of every bid")
        self._chat("Why is the sky blue? Answer in one sentence.")

        _title("Each node runs one short chat, so that the next bids rest on what it measured")
        for name in MACHINES:
            self.outbid("chat", "Say hello.", "--max-tokens", "8", "--prefer", name)

        _title("The same question, put out to tender among warm nodes")
        winner = self._chat("Write three sentences about a lighthouse.", "--max-tokens", "96")

        victim = winner if winner != self.home else "desktop"
        _title(f"Again, on {victim}, which is killed (SIGKILL) while it answers: the answer goes on elsewhere")
        self._chat_and_kill("Write three sentences about a lighthouse.", victim)
        self.outbid("jobs", "--limit", "6")

        _title("A job that must not get lost: on disk when its id is printed, done whoever dies, told by any machine")
        job = self._submit("Name three birds.")
        self.outbid("result", job, "--wait")

        _title(
            "A picture, drawn step by step on whichever machine bids best, and kept where every machine can fetch it"
        )
        self._picture("red apple")

        _title("The caller decides what counts. This one wants the answer that takes the least energy")
        self._chat("Name two primary colours.", "--max-tokens", "16", "--policy", "green")

    def outbid(self, *arguments: str) -> None:
        """Run one command on the home node, as a person there would."""
        sys.stdout.write(f"\n\033[36m$ outbid {shlex.join(arguments)}\033[0m\n")
        sys.stdout.flush()
        done = subprocess.run(self._command(*arguments), env=self._environment(self.home), check=False)
        if done.returncode:
            raise SystemExit(f"`outbid {shlex.join(arguments)}` ended with exit code {done.returncode}")

    def close(self) -> None:
        stop(self.nodes.values())

    def _chat(self, prompt: str, *options: str) -> str:
        """Chat, show the bid sheet, return the name of the winner."""
        self.outbid("chat", prompt, *options)
        job = self._ask("jobs", "--limit", "1")[0]["id"]
        self.outbid("why", job)
        sheet = self._ask("why", job)
        return str(next(c["name"] for c in sheet["bids"] if c["bid"]["node"] == sheet["winner"]))

    def _chat_and_kill(self, prompt: str, victim: str) -> None:
        """Kill the node that answers when a part of its answer is there."""
        arguments = ("chat", prompt, "--max-tokens", "96", "--prefer", victim)
        sys.stdout.write(f"\n\033[36m$ outbid {shlex.join(arguments)}\033[0m\n")
        sys.stdout.flush()
        with subprocess.Popen(
            self._command(*arguments), env=self._environment(self.home), stdout=subprocess.PIPE
        ) as chat:
            assert chat.stdout is not None
            shown = 0
            while piece := os.read(chat.stdout.fileno(), 4096):
                sys.stdout.write(piece.decode(errors="replace"))
                sys.stdout.flush()
                if shown < KILL_AFTER <= shown + len(piece):
                    self._kill(victim)
                shown += len(piece)
        if chat.returncode:
            raise SystemExit(f"the chat ended with exit code {chat.returncode}")

    def _picture(self, prompt: str) -> None:
        """Draw it, and fetch it again from another machine."""
        self.outbid("image", prompt, "--seed", "7", "-o", str(self.folder / "apple.png"))
        job = self._ask("jobs", "--limit", "1")[0]["id"]
        self.outbid("why", job)
        self.home, home = next(name for name in MACHINES if name != self.home and self._runs(name)), self.home
        self.outbid("result", job, "-o", str(self.folder / "again.png"))
        self.home = home

    def _runs(self, name: str) -> bool:
        return self.nodes[name].exit_code is None

    def _submit(self, prompt: str) -> str:
        """Hand in a durable chat; returns its id."""
        arguments = ("submit", "llm.chat", "--param", f"prompt={prompt}", "--param", "max_tokens=24")
        sys.stdout.write(f"\n\033[36m$ JOB=$(outbid {shlex.join(arguments)})\033[0m\n")
        sys.stdout.flush()
        done = subprocess.run(
            self._command(*arguments), env=self._environment(self.home), stdout=subprocess.PIPE, check=False
        )
        if done.returncode:
            raise SystemExit(f"submitting ended with exit code {done.returncode}")
        return done.stdout.decode().strip()

    def _start(self, name: str, settings: dict[str, float]) -> None:
        flags = ["--log-level", "warning", "--set", "courtesy.enabled=false"]  # you are typing on all three of them
        flags += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        shown = shlex.join(["--name", name, "--mesh", self.mesh, *flags])
        sys.stdout.write(f"\033[36m$ outbid up --state {name} {shown} &\033[0m\n")
        sys.stdout.flush()
        keyring = {"OUTBID_KEYRING": str(self.folder / "keyring")}
        self.nodes[name] = Daemon(self.folder / name, name, self.mesh, flags, keyring)
        self.nodes[name].spawn()

    def _wait_until_whole(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                local_node(self.folder / self.home)
            except OutbidError:
                time.sleep(0.05)
                continue
            if len(self._ask("nodes")) == len(MACHINES):
                return
            time.sleep(0.2)
        raise SystemExit(f"the nodes did not find each other within {START_TIMEOUT_S:g} s; {self._logs()}")

    def _check_alive(self) -> None:
        for name, node in self.nodes.items():
            if node.exit_code is not None:
                raise SystemExit(f"node {name} ended with exit code {node.exit_code}; {self._logs()}")

    def _logs(self) -> str:
        return "\n".join(f"{log.stem}: {log.read_text(errors='replace')}" for log in self.folder.glob("*.log"))

    def _kill(self, name: str) -> None:
        node = self.nodes[name]
        sys.stdout.write(f"\n\033[36m$ kill -9 {node.pid}   # {name}\033[0m\n")
        sys.stdout.flush()
        node.kill()
        if name == self.home:
            self.home = next(other for other in MACHINES if self._runs(other))

    def _ask(self, *arguments: str) -> Any:
        asked = subprocess.run(
            self._command(*arguments, "--json"), env=self._environment(self.home), stdout=subprocess.PIPE, check=False
        )
        return json.loads(asked.stdout) if asked.returncode == 0 else []

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "outbid", *arguments]

    def _environment(self, name: str) -> dict[str, str]:
        plain = {key: value for key, value in os.environ.items() if not key.startswith("OUTBID_")}
        return plain | {"OUTBID_STATE": str(self.folder / name), "OUTBID_KEYRING": str(self.folder / "keyring")}


def _title(text: str) -> None:
    sys.stdout.write(f"\n\033[1m── {text}\033[0m\n")
    sys.stdout.flush()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="outbid-demo-", ignore_cleanup_errors=True) as folder:
        demo = Demo(Path(folder))
        try:
            demo.run()
        except KeyboardInterrupt:
            sys.stdout.write("\ninterrupted\n")
        finally:
            demo.close()
    _title("Done. All three nodes are stopped; nothing is left running")


if __name__ == "__main__":
    main()
