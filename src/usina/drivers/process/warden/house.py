"""All runs of one state folder: making them, finding them again, removing them.

    <state>/             700
      box/               711; what users of runs must reach
        etc/             /etc of every run
        <handle>/        work/ tmp/ extra/, of the run's own user
      runs/<handle>/     700; journal, status, log.<position>; see `run`
      socket, lock, said the warden's own

A run's user must reach its box, whoever may pass the folders above: so the warden has a mount namespace of its own, in
which `box` is seen at a place that everybody reaches. Without root every run is of the warden's own user, and it is not
needed.
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from . import files, journal, kernel, network
from .groups import Group, Layout, Limits, find, sweep
from .loop import Loop, fork, run_program
from .ready import ReadySandboxes, make
from .run import Run
from .spares import PREFIX, Spares
from .spawn import CARD_FILES, GATED, MOST_BYTES, WORK, Sandboxes, Started, environment, release, words
from .volumes import Volumes

_OWN_PROCESSES: Final = 3  # the first, and two that join
_FORBIDDEN: Final = ("/usr", "/bin", "/sbin", "/lib", "/proc", "/dev", "/sys", "/etc")

Answer = Callable[[Exception | None], None]


class House:
    """`changed` is told the handle of every run whose sight is another."""

    def __init__(self, loop: Loop, state: str, settings: Mapping[str, Any]) -> None:
        self.loop = loop
        self.state = state
        self.settings = settings
        self.root = os.geteuid() == 0
        self.runs: dict[str, Run] = {}
        self.changed: Callable[[str], None] = lambda handle: None
        self._uids: set[int] = set()
        self._next_uid = 0
        self._preparing: dict[str, list[Answer]] = {}
        self._removing: dict[str, list[Answer]] = {}
        for folder, mode in (("box", 0o711), ("runs", 0o700)):
            os.makedirs(f"{state}/{folder}", exist_ok=True)
            os.chmod(f"{state}/{folder}", mode)
        self.layout = find(settings["group"]) if settings["groups"] else Layout("none", why="switched off")
        self.filter = bytes.fromhex(settings["filter"])
        self.place = reach(f"{state}/box", f"/run/{settings['group']}") if self.root else f"{state}/box"
        self.sandboxes = Sandboxes(self._common())
        self.spares = Spares(state)
        self._volumes = Volumes(settings["volumes"])
        self._adopt()
        sweep(self.layout, PREFIX)
        self._ready = ReadySandboxes(
            loop, state, self.layout, self.sandboxes, self.spares, self._lend_uid, self._give_back_uid
        )

    def _common(self) -> dict[str, Any]:
        """What is the same for all sandboxes."""
        view = f"{self.state}/view"
        os.makedirs(view, exist_ok=True)
        named = {name: self.settings[name] for name in ("filter", "read_only", "open_files")}
        return {**named, "view": view, "box": os.path.realpath(f"{self.state}/box")}

    # --- finding again

    def _adopt(self) -> None:
        for name in sorted(os.listdir(f"{self.state}/runs")):
            try:
                self._adopt_one(name)
            except Exception:
                traceback.print_exc()  # one broken folder must not keep the others from being found
        if not self._living() or not os.path.isdir(f"{self.state}/box/etc"):
            files.make_etc(f"{self.state}/box/etc", network.resolver(_resolver().decode("utf-8", "replace")))
        for name in os.listdir(f"{self.state}/box"):
            if name not in self.runs and name != "etc":
                self._clear(name, lambda problem: None)

    def _adopt_one(self, name: str) -> None:
        known = journal.read(f"{self.state}/runs/{name}/journal")
        if "record" not in known:
            return self._clear(name, lambda problem: None)
        record = {**known["record"], "filter": self.filter}
        group = Group(record["groups"], record["group_versions"])
        run = Run(self.loop, f"{self.state}/runs/{name}", record, group, record["log_limit"])
        if not run.adopt(known):
            group.remove()
            return self._clear(name, lambda problem: None)
        self._take(run)

    def _living(self) -> bool:
        return any(run.end is None for run in self.runs.values())

    def _take(self, run: Run) -> None:
        self.runs[run.handle] = run
        if run.record["uid"] is not None:
            self._uids.add(run.record["uid"])
        run.changed = lambda: self.changed(run.handle)

    # --- making

    def start(self, plan: Mapping[str, Any], answer: Answer) -> None:
        """Begin a run. `answer` gets None when its process is there, or what kept it from being."""
        handle = plan["handle"]
        if handle in self._preparing:
            self._preparing[handle].append(answer)
            return
        if handle in self.runs:
            return answer(None)
        if handle in self._removing:
            return answer(files.Refused("it is being removed", lasting=False))
        try:
            run = self._make(plan)
        except (OSError, files.Refused) as error:
            return self._fail(handle, error, [answer])
        self._take(run)
        if plan["files"]:
            self._prepare(run, plan["files"], answer)
        else:
            self._begin(run, [answer])

    def _make(self, plan: Mapping[str, Any]) -> Run:
        """Folders and the record; the record last."""
        handle = plan["handle"]
        folder = f"{self.state}/runs/{handle}"
        record = self._record(plan)
        ready = self._ready.take(record)
        if ready is not None:
            record |= {"uid": ready.uid, "groups": ready.group.folders}
        try:
            self._furnish(handle, record, ready.name if ready is not None else self.spares.take(record["uid"]))
        except BaseException:
            if ready is not None:
                self._ready.drop(ready)
            raise
        journal.add(f"{folder}/journal", "record", record)
        group = Group(record["groups"], record["group_versions"])
        run = Run(self.loop, folder, {**record, "filter": self.filter}, group, record["log_limit"])
        if ready is not None:
            run.given(ready.started)
        return run

    def _furnish(self, handle: str, record: Mapping[str, Any], name: str) -> None:
        """Folders of a run, as it wishes them."""
        box = f"{self.state}/box/{handle}"
        self.spares.give(name, handle)
        if record["extra"]:
            _folder(f"{box}/extra", 0o700, record["uid"])
        _folder_within(f"{box}/work", record["workdir"], record["uid"])
        for file in CARD_FILES if record.get("card") else ():
            _write(f"{box}/{file}", record["card"][file])

    def close(self) -> None:
        """End what waits. Runs go on."""
        self._ready.close()
        self.sandboxes.close()
        self.spares.clear()

    def _record(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """The plan, and what it is given here."""
        limits = _limits(plan, self.settings)
        group = Group.of(self.layout, plan["handle"], limits)
        size = sum(
            len(word.encode("utf-8", "surrogateescape")) for pair in plan["environment"].items() for word in pair
        )
        if size > MOST_BYTES:
            raise files.Refused(f"its environment has more than {MOST_BYTES} bytes")
        return {
            **{key: value for key, value in plan.items() if key not in ("files", "environment", "forced")},
            "uid": self._free_uid() if self.root else None,
            "workdir": os.path.normpath(os.path.join(WORK, plan["workdir"])),
            "extra": [_allowed(file["path"]) for file in plan["files"] if _is_extra(file["path"])],
            "volumes": [{**one, "path": _allowed(one["path"])} for one in plan["volumes"]],
            "groups": group.folders,
            "group_versions": dict(self.layout.versions),
            "log_limit": self.settings["log_limit"],
            "shown": environment(plan),
        }

    def _free_uid(self) -> int:
        """The next number that no run has; those given back last are used again last."""
        first, count = self.settings["uids"]
        for _ in range(count):
            uid = first + self._next_uid % count
            self._next_uid += 1
            if uid not in self._uids:
                return int(uid)
        raise files.Refused(f"all {count} users for runs are taken", lasting=False)

    def _lend_uid(self) -> int | None:
        """A user that no run gets until it is given back, or is a run's."""
        if not self.root:
            return None
        uid = self._free_uid()
        self._uids.add(uid)
        return uid

    def _give_back_uid(self, uid: int | None) -> None:
        if uid is not None:
            self._uids.discard(uid)

    def _prepare(self, run: Run, wanted: list[Mapping[str, Any]], answer: Answer) -> None:
        """Put files in place, by a process that is the run's user. It reads only what was opened before."""
        self._preparing[run.handle] = [answer]
        wanted = [{**file, "linked": self._link(run, file, wanted[:n])} for n, file in enumerate(wanted)]
        told, tells = os.pipe()
        sources: list[int] = []
        try:
            for file in wanted:
                sources.append(os.open(file["source"], os.O_RDONLY | os.O_CLOEXEC))
            box = f"{self.place}/{run.handle}"
            most = run.record["disk"] or self.settings["unpack_limit"]
            pid = fork(lambda: _put(wanted, sources, box, most, run.record, tells), (*sources, tells))
        except OSError as error:
            os.close(told)
            return self._fail(run.handle, error, self._preparing.pop(run.handle))
        finally:
            for fd in (*sources, tells):
                os.close(fd)
        self.loop.when_over(pid, lambda code: self._prepared(run, code, told))
        self.changed(run.handle)

    def _link(self, run: Run, file: Mapping[str, Any], before: list[Mapping[str, Any]]) -> bool:
        """Whether a file that many have is there now, without a copy of its own. Done while its folders are as we made
        them; it is nobody's to write, but without root, when every run is who owns it."""
        if not self.root or not file.get("shared") or file["unpack"]:
            return False
        if _is_extra(file["path"]):
            top, path = "extra", str(sum(_is_extra(one["path"]) for one in before))
        else:
            top, path = "work", _relative(file["path"], run.record["workdir"])
        return files.link(file["source"], f"{self.state}/box/{run.handle}/{top}", path, run.record["uid"])

    def _prepared(self, run: Run, code: int, told: int) -> None:
        message = os.read(told, 4000).decode("utf-8", "replace")
        os.close(told)
        answers = self._preparing.pop(run.handle)
        if code:
            lasting, text = not message.startswith("!"), message.lstrip("!") or "its files could not be put in place"
            return self._fail(run.handle, files.Refused(text, lasting=lasting), answers)
        if run.handle in self._removing:  # removed meanwhile
            self._fail(run.handle, files.Refused("it is being removed", lasting=False), answers)
            return
        self._begin(run, answers)

    def _begin(self, run: Run, answers: list[Answer]) -> None:
        record = run.record
        try:
            limits = _limits(record, self.settings)
            if run.started is None:
                with self._volumes.mounted(record["volumes"], record["uid"]) as mounts:
                    run.given(make(self.sandboxes, record, run.folder, run.group, limits, mounts))
            else:
                run.group.limit(limits)
            started = cast(Started, run.started)
            run.began()
            if "cpuset" not in run.group.folders:
                started.pin(limits.cpus)
            pipe = started.tell(words(record))
            if record["network"] in GATED:
                run.wait_for_network(pipe)
                self._give_network(run, started.pid, pipe)
            else:
                release(pipe)
        except BrokenPipeError:  # its sandbox has gone already, and says why
            return self._fail(run.handle, files.Refused(run.problem() or "its sandbox went away"), answers)
        except (OSError, files.Refused) as error:
            return self._fail(run.handle, error, answers)
        run.listen()
        self._ready.begun()
        self.changed(run.handle)
        for answer in answers:
            answer(None)

    def _give_network(self, run: Run, pid: int, gate: int) -> None:
        where = (self.loop, run.folder, pid, gate)
        if run.record.get("card"):
            network.put_in(*where, run.record["card"], run.network_made)
        else:
            network.attach(*where, self.settings["network_program"], run.record["uid"], run.network_made)

    def _fail(self, handle: str, error: Exception, answers: list[Answer]) -> None:
        """Leave nothing of a run that could not be begun, then say why. Meanwhile it is being removed."""
        if isinstance(error, OSError):
            name = error.filename or ""
            lasting = error.errno in (errno.ENOENT, errno.E2BIG, errno.ENAMETOOLONG)
            error = files.Refused(f"{name}: {error.strerror}" if name else str(error.strerror), lasting=lasting)
        run = self.runs.pop(handle, None)
        self._removing.setdefault(handle, [])
        self.changed(handle)

        def over(problem: Exception | None) -> None:
            for waiting in self._removing.pop(handle):
                waiting(problem)
            for answer in answers:
                answer(error)

        def gone() -> None:
            if run is not None:
                self._uids.discard(run.record["uid"])
            self._clear(handle, over)

        if run is None:
            gone()
        else:
            run.give_up(gone)

    # --- removing

    def remove(self, handle: str, answer: Answer) -> None:
        """End a run and leave nothing of it."""
        if handle in self._removing:
            self._removing[handle].append(answer)
            return
        run = self.runs.get(handle)
        if run is None:
            if os.path.exists(f"{self.state}/runs/{handle}"):
                return self._clear(handle, answer)
            return answer(None)
        self._removing[handle] = [answer]
        if handle in self._preparing:
            return  # `_prepared` comes, and finds it here
        run.stop(0, "stopped", lambda: self._forget(run))

    def _forget(self, run: Run) -> None:
        def gone(problem: Exception | None) -> None:
            self.runs.pop(run.handle, None)
            self._uids.discard(run.record["uid"])
            self.changed(run.handle)
            for answer in self._removing.pop(run.handle, []):
                answer(problem)

        self._clear(run.handle, gone)

    def _clear(self, handle: str, answer: Answer) -> None:
        """Remove a run's folders; the box first, so that what is half removed is still known."""
        if handle in self.runs and self.spares.keep(handle):
            return answer(None)
        pid = files.clear(f"{self.state}/box/{handle}", run_program)

        def cleared(code: int) -> None:
            if os.path.isdir(f"{self.state}/box/{handle}"):
                return answer(files.Refused("its folder could not be removed", lasting=False))
            files.clear(f"{self.state}/runs/{handle}", run_program)
            answer(None)

        if pid is None:
            cleared(0)
        else:
            self.loop.when_over(pid, cleared)


def _put(
    wanted: list[Mapping[str, Any]], sources: list[int], box: str, most: int, record: Mapping[str, Any], tells: int
) -> int:
    """In a process of its own: as the run's user, into its working directory or beside it."""
    try:
        files.become(record["uid"])
        kernel.die_with_parent()
        os.umask(0o022)
        inside: list[Mapping[str, Any]] = []
        extra: list[Mapping[str, Any]] = []
        within, beside, number = [], [], 0
        for file, source in zip(wanted, sources, strict=True):
            if _is_extra(file["path"]):
                number += 1
            if file["linked"]:
                continue
            if _is_extra(file["path"]):
                extra.append({**file, "path": str(number - 1)})
                beside.append(source)
            else:
                inside.append({**file, "path": _relative(file["path"], record["workdir"])})
                within.append(source)
        files.put(inside, within, f"{box}/work", most)
        if extra:
            files.put(extra, beside, f"{box}/extra", most)
    except files.Refused as error:
        os.write(tells, str(error).encode())
        return 1
    except OSError as error:
        os.write(tells, f"!{error.strerror}".encode())
        return 1
    return 0


def _is_extra(path: str) -> bool:
    """An absolute path that is not in the working directory."""
    return path.startswith("/") and path != WORK and not os.path.normpath(path).startswith(f"{WORK}/")


def _allowed(path: str) -> str:
    path = os.path.normpath(path)
    if path == "/" or any(path == top or path.startswith(f"{top}/") for top in _FORBIDDEN):
        raise files.Refused(f"{path}: belongs to the host; files go into the working directory")
    return path


def _relative(path: str, workdir: str) -> str:
    """A path as seen from the top of the working directory; relative ones count from where the command begins."""
    here = workdir if workdir == WORK or workdir.startswith(f"{WORK}/") else WORK
    return os.path.relpath(os.path.normpath(os.path.join(here, path)), WORK)


def _limits(plan: Mapping[str, Any], settings: Mapping[str, Any]) -> Limits:
    pids = settings["pids"] + _OWN_PROCESSES
    return Limits(plan["memory"], plan["cores"], pids, tuple(plan["cpus"]), tuple(plan["nodes"]))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(path, 0o644)


def _folder(path: str, mode: int, uid: int | None) -> None:
    os.mkdir(path, mode)
    os.chmod(path, mode)
    if uid is not None:
        os.chown(path, uid, uid)


def _folder_within(work: str, workdir: str, uid: int | None) -> None:
    """The folder that the command begins in, where it is one below the working directory, which is empty yet."""
    path = work
    for name in os.path.relpath(workdir, WORK).split("/") if workdir.startswith(f"{WORK}/") else ():
        path = f"{path}/{name}"
        _folder(path, 0o755, uid)


def _resolver() -> bytes:
    try:
        return kernel.content("/etc/resolv.conf")
    except OSError:
        return b""


def reach(box: str, place: str) -> str:
    """Show the folder of boxes at a place that every user reaches, in a mount namespace of our own. Outside of it the
    place is an empty folder, which goes with `unreach`."""
    os.makedirs(place, 0o755, exist_ok=True)
    kernel.unshare(kernel.NEWNS)
    kernel.mount("none", "/", kernel.MS_REC | kernel.MS_SLAVE)
    kernel.mount(os.path.realpath(box), place, kernel.MS_BIND)
    return place


def unreach(place: str) -> None:
    """Runs that go on have seen it already, and do not need it any more."""
    with suppress(OSError):
        kernel.unmount(place)
        os.rmdir(place)
