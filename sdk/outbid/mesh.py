"""`Mesh`: the mesh as a Python object."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from outbid.artifacts import Artifact, artifact, artifacts_of
from outbid.asking import ask
from outbid.chat import ChatStream
from outbid.following import Following
from outbid.history import Parquet, Table, grouped, parquet, report, table
from outbid.images import Drawing, PictureSource, sources
from outbid.jobs import Job
from outbid.link import Link
from outbid.live import LiveEvent, live
from outbid.mapping import map_over
from outbid.models import pull, remove, whole_path
from outbid.operating import NodeHandle
from outbid.submitting import submission, submit
from outbid_contracts import subjects
from outbid_contracts.durable import Priority, Submission
from outbid_contracts.events import JobEvent
from outbid_contracts.files import PullEvent, PullRequest, Removed
from outbid_contracts.history import LIMIT, TIMEOUT_S, By, Report, ReportRequest, SqlRequest
from outbid_contracts.ids import JobId, new_job_id
from outbid_contracts.images import ANIMATE, EDIT, GENERATE
from outbid_contracts.live import LogLevel
from outbid_contracts.llm import CHAT
from outbid_contracts.messages import JobRecord, JobState
from outbid_contracts.policy import Goal, Policy
from outbid_contracts.requests import (
    JobRequest,
    JobsReply,
    JobsRequest,
    ModelList,
    ModelView,
    NodeList,
    NodeView,
)
from outbid_contracts.what_if import WhatIfReply, WhatIfRequest


class Mesh(Link):
    """A connection to the mesh through one of its nodes.

    Without arguments it is the node of this machine (`state`, OUTBID_STATE or the usual folder tells where it is);
    `url` names another. `creds` is a credentials file (`outbid creds`); default: the ones of this machine's node.
    `owner_away_s` is how long results and events of durable jobs are waited for while nobody answers for them.
    Raises NoNode, NodeUnreachable or AccessRefused on entering.
    """

    def chat(
        self,
        /,
        prompt: str | Iterable[Mapping[str, str]],
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
        **params: Any,
    ) -> ChatStream:
        """Chat with a language model: iterate over the result for chunks, or `await mesh.chat(…).reply()`.

        `prompt` is text, or messages as {role, content}. `params` are those of `ChatParams`: model, max_tokens,
        temperature, top_p, repeat_penalty, seed, stop, json_schema. After `timeout_s` it is cancelled: TimedOut.
        """
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(m) for m in prompt]}
        id = JobId(job) if job else new_job_id()
        events = self.stream(CHAT, asked | params, policy=policy, job=id)
        return ChatStream(id, events, self.cancel, on_event, timeout_s)

    map = map_over

    def image(
        self,
        /,
        prompt: str,
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
        **params: Any,
    ) -> Drawing:
        """Draw: iterate over the result for steps and previews, or `await mesh.image(…).result()` for the pictures.

        `params` are those of `ImageParams`: model, width, height, steps, guidance, seed, n, negative_prompt, scheduler,
        loras, format, metadata, quality, preview_every, checkpoint_every. After `timeout_s` it is cancelled: TimedOut.
        """
        return self._draw(GENERATE, {"prompt": prompt, **params}, policy, job, on_event, timeout_s)

    def edit(
        self,
        /,
        image: PictureSource,
        prompt: str,
        *,
        mask: PictureSource | None = None,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
        **params: Any,
    ) -> Drawing:
        """Draw on from a picture; `mask` is white where it is to change. `params`: `strength`, and those of `image`.

        A picture is the content of a file, its path, an artifact or the id of one. Raises PayloadTooLarge, OSError.
        """
        asked = {"prompt": prompt, **sources(image=image, mask=mask), **params}
        return self._draw(EDIT, asked, policy, job, on_event, timeout_s)

    def animate(
        self,
        /,
        prompt: str,
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        timeout_s: float | None = None,
        **params: Any,
    ) -> Drawing:
        """A short film, as the one picture of the result. `params` are those of `AnimateParams`: frames, fps, loop,
        prompt_to, format (gif, webp, mp4), and those of `image` but `n`.
        """
        return self._draw(ANIMATE, {"prompt": prompt, **params}, policy, job, on_event, timeout_s)

    def _draw(
        self,
        capability: str,
        params: Mapping[str, Any],
        policy: Policy | Goal | None,
        job: str | None,
        on_event: Callable[[JobEvent], None] | None,
        timeout_s: float | None,
    ) -> Drawing:
        id = JobId(job) if job else new_job_id()
        events = self.stream(capability, params, policy=policy, job=id)
        return Drawing(self, id, events, self.cancel, on_event, timeout_s)

    async def artifact(self, id: str) -> Artifact:
        """A file that a job made, by its id. Raises UnknownArtifact."""
        return await artifact(self, id)

    async def artifacts(self, job: str | None = None) -> list[Artifact]:
        """The files that a job made, in order; without a job, the newest of all."""
        return await artifacts_of(self, job)

    async def run(
        self,
        capability: str,
        params: Mapping[str, Any],
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Any capability: the single reply as a map (the result's fields beside job, node, name, timings).

        It outlives its nodes: it is asked for again under the same id. After `timeout_s`, or when the caller is
        cancelled, so is the job: TimedOut.
        """
        id = JobId(job) if job else new_job_id()
        return await ask(self, capability, _envelope(params, policy, id, stream=False), id, timeout_s)

    def stream(
        self,
        capability: str,
        params: Mapping[str, Any],
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        idle_timeout_s: float | None = None,
    ) -> AsyncIterator[JobEvent]:
        """Any capability: every event of the job, the result last.

        It outlives its nodes: a job whose owner is lost is taken on by the next node that answers, and goes on after
        the pieces that came (`Awarded.chunks`) where the capability can. Left early, it is cancelled. With
        `idle_timeout_s`, NodeUnreachable is raised instead when nothing came for so long.
        """
        id = JobId(job) if job else new_job_id()
        message = _envelope(params, policy, id, stream=True)
        if idle_timeout_s is None:
            return Following(self.connected, capability, message, id, self.abandoned.call_off).events()
        return self.connection.stream(subjects.capability(capability), message, JobEvent, idle_timeout_s=idle_timeout_s)

    async def submit(
        self,
        capability: str,
        params: Mapping[str, Any],
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        priority: Priority | None = None,
        delay_s: float | None = None,
        not_before: float | datetime | None = None,
        after: Iterable[str] = (),
        max_attempts: int | None = None,
        keep_s: float | None = None,
    ) -> Job:
        """A durable job: once this returns, it is on disk and will be done, whatever becomes of this program.

        `job`: an id of your own; submitting it again gives the same job. `not_before` (Unix seconds or a datetime) or
        `delay_s`: when it may start at the earliest. `after`: jobs that must be done first. `keep_s`: how long its
        result is kept. Raises InvalidRequest, UnknownCapability, StorageFailed; NodeUnreachable if nobody took it
        within half a minute, and then only a submit with the same `job` tells whether somebody did.
        """
        wanted = submission(
            capability,
            params,
            policy,
            not_before,
            job=job,
            priority=priority,
            delay_s=delay_s,
            after=tuple(after) if not isinstance(after, str) else after,
            max_attempts=max_attempts,
            keep_s=keep_s,
        )
        return (await submit(self, [wanted]))[0]

    async def submit_many(self, jobs: Iterable[Submission | Mapping[str, Any]]) -> list[Job]:
        """Many durable jobs in few requests: `Submission`s or maps of its fields. Up to 1000 are taken or refused as
        one; of more, the error's `detail["accepted"]` tells which went before.
        """
        return await submit(self, jobs)

    def attach(self, id: str) -> Job:
        """A durable job submitted before, from here or elsewhere."""
        return Job(self, JobId(id))

    async def nodes(self) -> list[NodeView]:
        return list((await self.node_list()).nodes)

    async def node_list(self) -> NodeList:
        """The machines that are there, and those that were and are away now."""
        reply: NodeList = await self.ask(subjects.NODES, None, NodeList)
        return reply

    def node(self, node: str | None = None) -> NodeHandle:
        """One machine, by name or id (default: the one of this machine), to give it orders: drain, pause, pin, wake…"""
        return NodeHandle(self, node)

    def live(
        self, *, jobs: bool = True, auctions: bool = False, logs: LogLevel | None = None
    ) -> AsyncGenerator[LiveEvent, None]:
        """What goes on in the mesh, as it happens: each node's Presence every second, the events of all jobs, with
        `auctions` every auction held, with `logs` log lines from that level up (administrators only).

        It lasts over lost connections (LinkLost, LinkBack) and never raises for them. A reader that is too slow misses
        the oldest events. Raises AccessRefused where the role may not hear that.
        """
        return live(self, jobs=jobs, auctions=auctions, logs=logs)

    async def models(self) -> list[ModelView]:
        return list((await self.model_list()).models)

    async def model_list(self) -> ModelList:
        """The models that are offered, and those that were pulled without being offered, or are being pulled."""
        reply: ModelList = await self.ask(subjects.MODELS, None, ModelList)
        return reply

    def pull(
        self,
        source: str,
        *,
        name: str = "",
        on: str | None = None,
        sha256: str = "",
        variant: str = "",
        mesh_first: bool = True,
        cancel: bool = False,
    ) -> AsyncGenerator[PullEvent, None]:
        """Fetch a model to this machine's node, or to the one called `on`: iterate to the end for how far it is.

        `source` is hf:org/name[@revision][:file], file:/path or https://…; `variant` is for diffusers repositories.
        The node goes on when nobody reads any more; `cancel` ends that and throws away what came. Raises
        InvalidRequest, PullFailed, ChecksumMismatch, NoSpace.
        """
        request = PullRequest(
            source=whole_path(source), name=name, sha256=sha256, variant=variant, mesh=mesh_first, cancel=cancel
        )
        return pull(self, request, on)

    async def remove_model(self, model: str, *, on: str | None = None) -> Removed:
        """Delete a model that was pulled. Raises UnknownModel, InvalidRequest while it is in use."""
        return await remove(self, model, on)

    async def jobs(self, *, limit: int = 50, state: JobState | None = None) -> JobsReply:
        """Recent jobs of every node, the newest first."""
        reply: JobsReply = await self.ask(subjects.jobs("list"), JobsRequest(limit=limit, state=state), JobsReply)
        return reply

    async def job(self, id: str) -> JobRecord:
        """One job with its attempts and bid sheets. Raises UnknownJob."""
        record: JobRecord = await self.ask(subjects.jobs("get"), JobRequest(job=JobId(id)), JobRecord)
        return record

    async def what_if(
        self,
        capability: str | None = None,
        params: Mapping[str, Any] | None = None,
        *,
        job: str | None = None,
        policy: Policy | Goal | Sequence[Policy | Goal] | None = None,
        without: Iterable[str] = (),
    ) -> WhatIfReply:
        """What would happen to such a job now: the nodes are asked for bids and nothing runs. Or what would have
        happened to `job` under another policy, by the bids that it got.

        `without`: nodes, by id or name, that are taken for absent. `base` of the reply is without these changes,
        `cases` has one for each policy. Raises InvalidRequest, UnknownCapability, UnknownJob.
        """
        wanted = [] if policy is None else [policy] if isinstance(policy, str | Policy) else policy
        request = WhatIfRequest(
            capability=capability,
            params={key: value for key, value in (params or {}).items() if value is not None},
            job=None if job is None else JobId(job),
            policies=tuple(one if isinstance(one, str) else msgspec.to_builtins(one) for one in wanted),
            without=(without,) if isinstance(without, str) else tuple(without),
        )
        reply: WhatIfReply = await self.ask(subjects.jobs("what-if"), request, WhatIfReply)
        return reply

    async def cancel(self, id: str) -> JobRecord:
        """Stop a job; one that ended stays as it is. Raises UnknownJob."""
        record: JobRecord = await self.ask(subjects.jobs("cancel"), JobRequest(job=JobId(id)), JobRecord)
        return record

    async def sql(
        self,
        query: str,
        *,
        mesh: bool = False,
        over: str | None = None,
        limit: int = LIMIT,
        timeout_s: float = TIMEOUT_S,
    ) -> Table:
        """One SELECT over the history that a node keeps (docs/history.md): what it did, bid, measured.

        With `mesh` each node runs it, and the answers are joined with the node's name in front; `over` is then a second
        SELECT over the joined table `answers`. At most `limit` rows (100,000) and `timeout_s` (60) for each SELECT.
        Raises BadQuery, InvalidRequest, QueryTooLong, Busy, NoHistoryKept.
        """
        return await table(self, SqlRequest(sql=query, mesh=mesh, over=over, limit=limit, timeout_s=timeout_s))

    async def sql_parquet(
        self,
        query: str,
        *,
        mesh: bool = False,
        over: str | None = None,
        limit: int = LIMIT,
        timeout_s: float = TIMEOUT_S,
    ) -> Parquet:
        """The same as a Parquet file, which keeps every type exactly."""
        return await parquet(self, SqlRequest(sql=query, mesh=mesh, over=over, limit=limit, timeout_s=timeout_s))

    async def report(self, month: str | None = None, *, by: By | Sequence[By] = "person") -> Report:
        """What was used in a month (YYYY-MM in the local time of the node that answers; default: this one), summed up
        over all nodes by person, capability, node or model, or by several of these.
        """
        return await report(self, ReportRequest(month=month, by=grouped(by)))


def _envelope(
    params: Mapping[str, Any], policy: Policy | Goal | None, job: str | None, *, stream: bool
) -> dict[str, Any]:
    envelope: dict[str, Any] = {key: value for key, value in params.items() if value is not None}
    if policy is not None:
        envelope["policy"] = policy if isinstance(policy, str) else msgspec.to_builtins(policy)
    if job is not None:
        envelope["job"] = job
    if stream:
        envelope["stream"] = True
    return envelope
