"""A private, real Slurm for a test run: munge, a database, slurmdbd, slurmctld, three slurmd, slurmrestd, on loopback.

From the system's packages, in a temporary folder, on free ports. The nodes have no cgroups (`proctrack/linuxproc`),
more CPUs than the machine under them, and pretended GPUs that are copies of ``/dev/null``. A few Unix users
are made for the time it runs. Needs root. Nothing of it stays, whatever happens; what a killed run left, the next one
sweeps.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "slurmrestd",
    "sacctmgr",
    "sbatch",
)
REST_USER = "daemon"
_MARK = "usina test user of"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a client needs, and a few levers for tests."""

    folder: Path
    name: str
    conf: Path
    rest_url: str
    jwt_key: Path
    users: tuple[str, str]  # both have the accounts "lab" (default) and "guests"
    stranger: str  # a user that accounting does not know
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str]:
        return {"PATH": _SYSTEM_PATH, "SLURM_CONF": str(self.conf), "LC_ALL": "C.UTF-8"}

    def command(self, *words: str, user: str | None = None, check: bool = True) -> str:
        """Run one of Slurm's commands, as root or as `user`; its standard output."""
        who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        done = subprocess.run(words, capture_output=True, text=True, cwd="/", env=self.environment, **who)  # type: ignore[call-overload]
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed: {done.stderr or done.stdout}")
        return str(done.stdout)

    def restart_controller(self) -> None:
        """Kill slurmctld and start it again, from its saved state."""
        self.stop_controller()
        self.start_controller()

    def stop_controller(self) -> None:
        _end(self.daemons.pop("slurmctld"))

    def start_controller(self) -> None:
        self.daemons["slurmctld"] = self.launch("slurmctld", "-D", "-f", str(self.conf))
        _until(lambda: "UP" in self.command("scontrol", "ping", check=False), "slurmctld")

    def launch(self, *words: str, user: str | None = None, **environment: str) -> subprocess.Popen[bytes]:
        """A daemon in the foreground, that dies with us (as long as it does not change its user itself)."""
        who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
        with (self.folder / "log" / f"{Path(words[0]).name}.out").open("ab") as out:
            return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", preexec_fn=_die_with_parent,
                env={**self.environment, **environment}, **who,
            )  # fmt: skip


def missing() -> str:
    """Why no Slurm can be started here; "" where one can."""
    if os.geteuid():
        return "needs root"
    path = os.pathsep.join((os.environ.get("PATH", ""), _SYSTEM_PATH))
    lacks = [program for program in PROGRAMS if not shutil.which(program, path=path)]
    if lacks:
        return f"not installed: {', '.join(lacks)}"
    plugins = [
        found for where in ("lib", "lib/*", "lib64") for found in Path("/usr").glob(f"{where}/slurm*/auth_jwt.so")
    ]
    return "" if plugins else "not installed: slurm-wlm-jwt-plugin"


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running cluster. Everything of it is gone afterwards."""
    with ExitStack() as undo:
        folder = Path(tempfile.mkdtemp(prefix="usina-slurm-"))
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        for name in ("log", "run", "state", "spool", "homes", "devices"):
            (folder / name).mkdir(mode=0o755)
        users = undo.enter_context(_users(folder, 3))
        rest_port = free_port()
        here = Cluster(
            folder, f"usina{secrets.token_hex(3)}", folder / "slurm.conf", f"http://127.0.0.1:{rest_port}",
            folder / "jwt.key", (users[0], users[1]), users[2],
        )  # fmt: skip
        undo.callback(_end_all, here)
        _start(here, rest_port)
        yield here


def _start(here: Cluster, rest_port: int) -> None:
    _keys(here)
    ports = {name: free_port() for name in ("ctld", "dbd", "n1", "n2", "g1")}
    _write_configuration(here, ports)
    daemons, folder = here.daemons, here.folder
    daemons["munged"] = here.launch(
        "munged", "--foreground", f"--socket={folder}/run/munge.socket", f"--key-file={folder}/munge.key",
        f"--log-file={folder}/log/munged.log", f"--pid-file={folder}/run/munged.pid",
        f"--seed-file={folder}/munge.seed",
    )  # fmt: skip
    _start_database(here)
    _until(lambda: (folder / "run/munge.socket").exists(), "munged")
    daemons["slurmdbd"] = here.launch("slurmdbd", "-D", MYSQL_UNIX_PORT=str(folder / "db-run/db.sock"))
    _until(lambda: _listens(ports["dbd"]), "slurmdbd")
    _fill_accounting(here)
    here.start_controller()
    for node in ("n1", "n2", "g1"):
        daemons[node] = here.launch("slurmd", "-D", "-N", node, "-f", str(here.conf))
    daemons["slurmrestd"] = here.launch(
        "slurmrestd", "-a", "rest_auth/jwt", "-f", str(here.conf), here.rest_url[7:], user=REST_USER, SLURM_JWT="daemon"
    )
    _until(lambda: _listens(rest_port), "slurmrestd")
    _until(lambda: here.command("sinfo", "-h", "-N", "-t", "idle", "-o", "%N", check=False).count("\n") >= 3, "slurmd")


def _keys(here: Cluster) -> None:
    for path, owner in ((here.folder / "munge.key", 0), (here.jwt_key, 0)):
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(64))
        os.chown(path, owner, owner)


def _write_configuration(here: Cluster, ports: Mapping[str, int]) -> None:
    folder, host = here.folder, socket.gethostname().partition(".")[0]
    for number in range(4):
        os.mknod(folder / "devices" / f"gpu{number}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (folder / "gres.conf").write_text(
        f"NodeName=g1 Name=gpu Type=h100 File={folder}/devices/gpu[0-1]\n"
        f"NodeName=g1 Name=gpu Type=1g.10gb File={folder}/devices/gpu[2-3]\n"
    )
    (folder / "topology.conf").write_text(
        "SwitchName=leaf1 Nodes=n1,n2\nSwitchName=leaf2 Nodes=g1\nSwitchName=spine Switches=leaf1,leaf2\n"
    )
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    (folder / "slurmdbd.conf").write_text(
        f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={ports['dbd']}\nSlurmUser=root\nAuthType=auth/munge\n"
        f"AuthInfo=socket={folder}/run/munge.socket\nAuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key={here.jwt_key}\n"
        f"LogFile={folder}/log/slurmdbd.log\nPidFile={folder}/run/slurmdbd.pid\nStorageType=accounting_storage/mysql\n"
        f"StorageHost=localhost\nStorageUser=root\nStorageLoc=slurm\n"
    )
    (folder / "slurmdbd.conf").chmod(0o600)
    here.conf.write_text(f"""\
ClusterName={here.name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports["ctld"]}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={here.jwt_key}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports["dbd"]}
AccountingStoragePass={folder}/run/munge.socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
PriorityType=priority/basic
TopologyPlugin=topology/tree
SlurmdParameters=config_overrides
MinJobAge=5
KillWait=2
CompleteWait=0
EpilogMsgTime=0
ReturnToService=2
MailProg=/bin/true
SlurmdTimeout=60
MessageTimeout=4
DefMemPerCPU=100
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports["n1"]} CPUs=4 RealMemory=4000 Feature=amd,fast
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports["n2"]} CPUs=4 RealMemory=4000 Feature=amd
NodeName=g1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports["g1"]} CPUs=8 RealMemory=8000 Feature=nvlink \
Gres=gpu:h100:2,gpu:1g.10gb:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=1-00:00:00 DefaultTime=00:10:00 State=UP
PartitionName=gpu Nodes=g1 MaxTime=12:00:00 DefaultTime=00:10:00 State=UP
""")


def _start_database(here: Cluster) -> None:
    """MariaDB as its own user, on a socket alone."""
    data, run = here.folder / "db", here.folder / "db-run"
    for folder in (data, run):
        folder.mkdir(mode=0o755)
        shutil.chown(folder, "mysql", "mysql")
    done = subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=mysql", "--skip-test-db",
         "--auth-root-authentication-method=normal", "--skip-name-resolve"],
        capture_output=True, text=True, cwd="/", env=here.environment,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mariadb-install-db failed: {done.stderr or done.stdout}")
    here.daemons["mariadbd"] = here.launch(
        "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={run}/db.sock",
        "--skip-networking",
        "--innodb-buffer-pool-size=512M", "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        f"--pid-file={run}/pid", user="mysql",
    )  # fmt: skip
    _until(lambda: _answers(run / "db.sock"), "mariadbd")


def _fill_accounting(here: Cluster) -> None:
    manage = ("sacctmgr", "-i")
    here.command(*manage, "add", "cluster", here.name)
    here.command(*manage, "add", "qos", "urgent", "Priority=100", "MaxWall=01:00:00")
    here.command(
        *manage, "add", "account", "lab,guests", f"Cluster={here.name}", "Description=test", "Organization=usina"
    )
    names = ",".join(here.users)
    here.command(
        *manage,
        "add",
        "user",
        names,
        "Account=lab,guests",
        "DefaultAccount=lab",
        "QOS=normal,urgent",
        "DefaultQOS=normal",
    )


@contextmanager
def _users(folder: Path, count: int) -> Iterator[tuple[str, ...]]:
    """Unix users with homes of their own below `folder`."""
    _sweep_users()
    names = tuple(f"ut{secrets.token_hex(3)}" for _ in range(count))
    try:
        for name in names:
            home = folder / "homes" / name
            _run(
                "useradd",
                "-M",
                "-d",
                str(home),
                "-s",
                "/bin/bash",
                "-c",
                f"{_MARK} {os.getpid()}",
                "-K",
                "UID_MIN=20000",
                name,
            )
            home.mkdir(mode=0o700)
            shutil.chown(home, name, pwd.getpwnam(name).pw_gid)
        yield names
    finally:
        for name in names:
            subprocess.run(["userdel", "-f", name], capture_output=True)


def _sweep_users() -> None:
    for user in pwd.getpwall():
        owner = user.pw_gecos.removeprefix(_MARK).strip()
        if user.pw_gecos.startswith(_MARK) and owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            subprocess.run(["userdel", "-f", user.pw_name], capture_output=True)
            shutil.rmtree(Path(user.pw_dir).parents[1], ignore_errors=True)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} failed: {done.stderr or done.stdout}")


def _end_all(here: Cluster) -> None:
    """Jobs first, so that no process of theirs outlives their node."""
    with contextlib.suppress(Exception):
        here.command("scancel", "-f", "--user=" + ",".join(here.users), check=False)
        _until(lambda: not here.command("squeue", "-h", check=False).strip(), "jobs", limit=5)
    for name in ("slurmrestd", "n1", "n2", "g1", "slurmctld", "slurmdbd", "mariadbd", "munged"):
        if name in here.daemons:
            _end(here.daemons.pop(name))
    _end_strays(here.folder)


def _end_strays(folder: Path) -> None:
    """slurmstepd outlives its slurmd on purpose; those whose configuration was ours have nobody left."""
    needle = f"SLURM_CONF={folder}/".encode()
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            with contextlib.suppress(OSError):
                if needle in (process / "environ").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)  # a controller saves its state
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _until(ask: object, what: str, limit: float = 30.0) -> None:
    deadline = time.monotonic() + limit
    while not ask():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not answer within {limit} s")
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
