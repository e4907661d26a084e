"""`outbid image`: what is asked for, from the words on the command line."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from outbid.artifacts import Artifact
from outbid.cli import drawing, policies, saving
from outbid.cli.running import JSON, STATE, call_off, run
from outbid.images import Drawing, PictureSource
from outbid.mesh import Mesh
from outbid_contracts.artifacts import is_artifact_id
from outbid_contracts.errors import OutbidError
from outbid_contracts.ids import is_job_id
from outbid_contracts.images import Scheduler

FORMATS = ("png", "jpeg", "webp", "gif", "mp4")

_PLAIN = ("model", "width", "height", "steps", "guidance", "seed", "scheduler", "negative_prompt", "quality", "format")
_ONLY_WITH = {
    "edit": ("mask", "strength"),
    "animate": ("frames", "fps", "prompt_to", "no_loop"),
}
"""Options that mean something only beside another one."""

_WORDS = {"prompt_to": "to", "negative_prompt": "negative"}
"""Names of options that differ from the parameter's."""


@click.command()
@click.argument("prompt", required=False)
@click.option("-o", "out", metavar="FILE|FOLDER", help="Where to save; default: a new file named after the prompt.")
@click.option("--model", help="Name of the model; default: each node's own default.")
@click.option("--width", type=int, metavar="PIXELS", help="A multiple of 8.")
@click.option("--height", type=int, metavar="PIXELS")
@click.option("--size", metavar="WxH", help="Width and height in one, as 512x512.")
@click.option("--steps", type=int, help="Denoising steps: more take longer.")
@click.option("--guidance", type=float, help="How closely to follow the prompt.")
@click.option("--seed", type=int, help="The same seed and settings give the same picture.")
@click.option("-n", "--n", type=int, help="So many pictures, with seeds that count up.")
@click.option("--negative", "negative_prompt", metavar="TEXT", help="What should not be in it.")
@click.option("--scheduler", type=click.Choice(get_args(Scheduler)), help="Default: the model's own.")
@click.option("--lora", "loras", multiple=True, metavar="NAME[:WEIGHT]", help="An adaptation (repeatable).")
@click.option("--format", type=click.Choice(FORMATS), help="Default: by the name after -o, else png (gif for films).")
@click.option("--quality", type=int, help="Of jpeg and webp, 1 to 100.")
@click.option("--no-metadata", is_flag=True, help="Do not write prompt, seed and settings into the file.")
@click.option("--edit", metavar="FILE|ARTIFACT|JOB", help="Draw on from this picture.")
@click.option("--mask", metavar="FILE|ARTIFACT", help="With --edit: white where the picture is to change.")
@click.option("--strength", type=float, help="With --edit: 1 keeps nothing of the picture.")
@click.option("--animate", is_flag=True, help="Make a short film.")
@click.option("--frames", type=int, help="With --animate: how many pictures.")
@click.option("--fps", type=float, help="With --animate: pictures per second.")
@click.option("--to", "prompt_to", metavar="PROMPT", help="With --animate: what it turns into.")
@click.option("--no-loop", is_flag=True, help="With --animate: do not come back to the first picture.")
@policies.options
@click.option("--job", metavar="ID", help="Name the job yourself.")
@click.option("--no-preview", is_flag=True, help="Do not show the picture while it is drawn.")
@click.option("--no-show", is_flag=True, help="Do not show the picture in the terminal at the end.")
@STATE
@JSON
def image(prompt: str | None, state: str | None, as_json: bool, **options: Any) -> None:
    """Draw a picture on whichever node makes the best bid, and save it. Its path goes to standard output.

    \b
    outbid image "red apple" -o apple.png
    outbid image "green apple" --edit apple.png --strength 0.7
    outbid image "red apple" --animate --to "green apple" -o apples.gif

    With --json: one event per line; the last has the `paths`.
    """
    text = prompt if prompt is not None else _from_stdin()
    saving.check(options["out"])
    asked = parameters(options)
    show = drawing.JsonLines() if as_json else drawing.Terminal(options["no_preview"], options["no_show"])
    run(state, lambda mesh: _draw(mesh, text, asked, options, show))


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise click.UsageError('say what to draw: outbid image "red apple"')
    return sys.stdin.read().strip()


async def _draw(
    mesh: Mesh, prompt: str, asked: dict[str, Any], options: Mapping[str, Any], show: drawing.Display
) -> None:
    under_way = await _begin(mesh, prompt, asked, options, show)
    try:
        async for step in under_way:
            show.step(step)
        pictures = await under_way.result()
    except (asyncio.CancelledError, KeyboardInterrupt):
        show.close()
        await asyncio.shield(call_off(mesh, under_way.job))
        raise
    finally:
        show.close()
    try:
        paths = await saving.save(pictures, options["out"], prompt)
    except OutbidError as error:
        raise OutbidError(f"{error.message}; `outbid result {pictures.job} -o FILE` tries again") from error
    await show.end(pictures, paths)


async def _begin(
    mesh: Mesh, prompt: str, asked: dict[str, Any], options: Mapping[str, Any], show: drawing.Display
) -> Drawing:
    common: dict[str, Any] = asked | {
        "policy": policies.policy_of(options),
        "job": options["job"],
        "on_event": show.event,
    }
    if options["edit"] is not None:
        picture = await _source(mesh, "--edit", options["edit"])
        mask = await _source(mesh, "--mask", options["mask"]) if options["mask"] else None
        try:
            return mesh.edit(picture, prompt, mask=mask, **common)
        except OSError as error:
            raise click.BadParameter(f"{error.filename} cannot be read: {error.strerror}") from error
    return mesh.animate(prompt, **common) if options["animate"] else mesh.image(prompt, **common)


async def _source(mesh: Mesh, option: str, word: str) -> PictureSource:
    """The picture that a word means: a file, an artifact, or the first one of a job."""
    path = Path(word)
    if await asyncio.to_thread(path.is_file):
        return path
    if is_artifact_id(word):
        return word
    found: Sequence[Artifact] = await mesh.artifacts(word) if is_job_id(word) else ()
    if not found:
        raise click.BadParameter(f"{word} is no file here, and no artifact or job with pictures", param_hint=option)
    return found[0]


# -- from options to parameters ----------------------------------------------------------------------------------------


def parameters(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the capability, without the prompt and the pictures to work on. Raises click.UsageError."""
    _refuse_strangers(options)
    params = {name: options[name] for name in _PLAIN if options[name] is not None}
    params |= size(options["size"], params) if options["size"] is not None else {}
    params |= {"loras": [lora(word) for word in options["loras"]]} if options["loras"] else {}
    params |= {"metadata": False} if options["no_metadata"] else {}
    params |= {"preview_every": 0} if options["no_preview"] else {}
    for name in ("n", "strength", "frames", "fps", "prompt_to"):
        params |= {name: options[name]} if options[name] is not None else {}
    params |= {"loop": False} if options["no_loop"] else {}
    return params | _format(options)


def size(text: str, params: Mapping[str, Any] = {}) -> dict[str, int]:
    """Width and height of `512x512`. Raises click.BadParameter.

    >>> size("768x512")
    {'width': 768, 'height': 512}
    """
    found = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", text)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size; write 512x512", param_hint="--size")
    if given := [name for name in ("width", "height") if name in params]:
        raise click.UsageError(f"--size says it all; not with --{given[0]}")
    return {"width": int(found[1]), "height": int(found[2])}


def lora(word: str) -> dict[str, Any]:
    """
    >>> lora("watercolour:0.8"), lora("pixel-art")
    ({'name': 'watercolour', 'weight': 0.8}, {'name': 'pixel-art'})
    """
    name, colon, weight = word.rpartition(":")
    try:
        return {"name": name, "weight": float(weight)} if colon else {"name": word}
    except ValueError as error:
        message = f"the weight of {word!r} is not a number; write NAME or NAME:0.8"
        raise click.BadParameter(message, param_hint="--lora") from error


def _refuse_strangers(options: Mapping[str, Any]) -> None:
    """What was given and would not count, or contradicts."""
    if options["edit"] is not None and options["animate"]:
        raise click.UsageError("--edit and --animate do not go together")
    if options["animate"] and options["n"] is not None:
        raise click.UsageError("--n is for pictures; a film has --frames")
    for needed, names in _ONLY_WITH.items():
        given = [name for name in names if options[name] not in (None, False)]
        if given and not options[needed]:
            word = _WORDS.get(given[0], given[0]).replace("_", "-")
            raise click.UsageError(f"--{word} is for --{needed}")


def _format(options: Mapping[str, Any]) -> dict[str, str]:
    """By --format or the file's name, which must not contradict each other."""
    asked, named = options["format"], saving.format_of(options["out"])
    if asked and named and asked != named:
        raise click.UsageError(f"{options['out']} is no {asked}: leave out --format, or name the file otherwise")
    format = asked or named
    films = ("gif", "mp4", "webp")
    if format and (format not in films if options["animate"] else format in ("gif", "mp4")):
        fitting = "gif, webp or mp4" if options["animate"] else "png, jpeg or webp; films are made by --animate"
        raise click.UsageError(f"{format} is not for that; {fitting}")
    return {"format": format} if format else {}
