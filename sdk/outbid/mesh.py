"""`Mesh`: the mesh as a Python object."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

import msgspec

from outbid.artifacts import Artifact, artifact, artifacts_of
from outbid.chat import ChatStream
from outbid.connection import AccessRefused, Connection, local_node
from outbid.following import Following
from outbid.history import Parquet, Table, grouped, parquet, report, table
from outbid.images import Drawing, PictureSource, sources
from outbid.jobs import Job
from outbid.models import pull, remove, whole_path
from outbid.submitting import submission, submit
from outbid_contracts import subjects
from outbid_contracts.durable import Priority, Submission
from outbid_contracts.errors import NodeUnreachable
from outbid_contracts.events import JobEvent
from outbid_contracts.files import PullEvent, PullRequest, Removed
from outbid_contracts.history import LIMIT, TIMEOUT_S, By, Report, ReportRequest, SqlRequest
from outbid_contracts.ids import JobId, NodeId, new_job_id
from outbid_contracts.images import ANIMATE, EDIT, GENERATE
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

QUESTION_TIMEOUT_S = 10.0
"""For listings. Work has no time-out of its own: it waits for room, for a model to load, for a slow machine."""

OWNER_AWAY_S = 60.0
"""A machine that restarts is back by then; by default, another adopts the jobs of one that stays away longer."""


class Mesh:
    """A connection to the mesh through one of its nodes.

    Without arguments it is the node of this machine (`state`, OUTBID_STATE or the usual folder tells where it is);
    `url` names another. `creds` is a credentials file (`outbid creds`); default: the ones of this machine's node.
    `owner_away_s` is how long results and events of durable jobs are waited for while nobody answers for them.
    Raises NoNode, NodeUnreachable or AccessRefused on entering.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        creds: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        owner_away_s: float = OWNER_AWAY_S,
    ) -> None:
        self._url = url
        self._creds = creds
        self._state = state
        self._connection: Connection | None = None
        self.local: NodeId | None = None
        """The node of this machine, if that is the one connected to."""
        self._reconnecting = asyncio.Lock()
        self.owner_away_s = owner_away_s

    async def __aenter__(self) -> Mesh:
        self._connection = self._connect()
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _connect(self) -> Connection:
        if self._url is not None:
            return Connection(self._url, self._creds)
        local = local_node(self._state)
        self.local = NodeId(local.node)
        return Connection(local.url, self._creds or local.creds)

    @property
    def connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("the mesh is not open; write `async with Mesh() as mesh:`")
        return self._connection

    async def connected(self) -> Connection:
        """The connection; a new one where the old was given up because the node had been away too long.

        Raises NoNode or NodeUnreachable.
        """
        async with self._reconnecting:
            if self.connection.closed:
                fresh = self._connect()
                try:
                    await fresh.open()
                except AccessRefused as error:  # another program's server may have the port while the node is away
                    raise NodeUnreachable(error.message) from error
                self._connection = fresh
        return self.connection

    def chat(
        self,
        prompt: str | Iterable[Mapping[str, str]],
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        **params: Any,
    ) -> ChatStream:
        """Chat with a language model: iterate over the result for chunks, or `await mesh.chat(…).reply()`.

        `prompt` is text, or messages as {role, content}. `params` are those of `ChatParams`: model, max_tokens,
        temperature, top_p, repeat_penalty, seed, stop, json_schema.
        """
        asked = {"prompt": prompt} if isinstance(prompt, str) else {"messages": [dict(m) for m in prompt]}
        id = JobId(job) if job else new_job_id()
        events = self.stream(CHAT, asked | params, policy=policy, job=id)
        return ChatStream(id, events, self.cancel, on_event)

    def image(
        self,
        prompt: str,
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        **params: Any,
    ) -> Drawing:
        """Draw: iterate over the result for steps and previews, or `await mesh.image(…).result()` for the pictures.

        `params` are those of `ImageParams`: model, width, height, steps, guidance, seed, n, negative_prompt, scheduler,
        loras, format, metadata, quality, preview_every, checkpoint_every.
        """
        return self._draw(GENERATE, {"prompt": prompt, **params}, policy, job, on_event)

    def edit(
        self,
        image: PictureSource,
        prompt: str,
        *,
        mask: PictureSource | None = None,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        **params: Any,
    ) -> Drawing:
        """Draw on from a picture; `mask` is white where it is to change. `params`: `strength`, and those of `image`.

        A picture is the content of a file, its path, an artifact or the id of one. Raises PayloadTooLarge, OSError.
        """
        asked = {"prompt": prompt, **sources(image=image, mask=mask), **params}
        return self._draw(EDIT, asked, policy, job, on_event)

    def animate(
        self,
        prompt: str,
        *,
        policy: Policy | Goal | None = None,
        job: str | None = None,
        on_event: Callable[[JobEvent], None] | None = None,
        **params: Any,
    ) -> Drawing:
        """A short film, as the one picture of the result. `params` are those of `AnimateParams`: frames, fps, loop,
        prompt_to, format (gif, webp, mp4), and those of `image` but `n`.
        """
        return self._draw(ANIMATE, {"prompt": prompt, **params}, policy, job, on_event)

    def _draw(
        self,
        capability: str,
        params: Mapping[str, Any],
        policy: Policy | Goal | None,
        job: str | None,
        on_event: Callable[[JobEvent], None] | None,
    ) -> Drawing:
        id = JobId(job) if job else new_job_id()
        return Drawing(self, id, self.stream(capability, params, policy=policy, job=id), self.cancel, on_event)

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
        """Any capability: the single reply as a map (the result's fields beside job, node, name, timings)."""
        message = _envelope(params, policy, job, stream=False)
        result: dict[str, Any] = await self.connection.request(
            subjects.capability(capability), message, dict[str, Any], timeout_s=timeout_s
        )
        return result

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
        the pieces that came (`Awarded.chunks`) where the capability can. With `idle_timeout_s`, NodeUnreachable is
        raised instead when nothing came for so long.
        """
        id = JobId(job) if job else new_job_id()
        message = _envelope(params, policy, id, stream=True)
        if idle_timeout_s is None:
            return Following(self.connected, capability, message, id).events()
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
        reply: NodeList = await self._ask(subjects.NODES, None, NodeList)
        return list(reply.nodes)

    async def models(self) -> list[ModelView]:
        return list((await self.model_list()).models)

    async def model_list(self) -> ModelList:
        """The models that are offered, and those that were pulled without being offered, or are being pulled."""
        reply: ModelList = await self._ask(subjects.MODELS, None, ModelList)
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
        reply: JobsReply = await self._ask(subjects.jobs("list"), JobsRequest(limit=limit, state=state), JobsReply)
        return reply

    async def job(self, id: str) -> JobRecord:
        """One job with its attempts and bid sheets. Raises UnknownJob."""
        record: JobRecord = await self._ask(subjects.jobs("get"), JobRequest(job=JobId(id)), JobRecord)
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
        reply: WhatIfReply = await self._ask(subjects.jobs("what-if"), request, WhatIfReply)
        return reply

    async def cancel(self, id: str) -> JobRecord:
        """Stop a job; one that ended stays as it is. Raises UnknownJob."""
        record: JobRecord = await self._ask(subjects.jobs("cancel"), JobRequest(job=JobId(id)), JobRecord)
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

    async def _ask(self, subject: str, message: Any, type: Any) -> Any:
        return await self.connection.request(subject, message or {}, type, timeout_s=QUESTION_TIMEOUT_S)


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
