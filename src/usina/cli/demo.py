"""`usina demo`: the product's main job from beginning to end, told while it happens, and nothing left behind.

Whatever is made pushes its own removal on a stack, so that success, failure and Ctrl-C clean up alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from usina.cli import config, machine_inside, progress, screen, story
from usina.cli.demo_factory import OwnFactory
from usina.cli.demo_steps import Steps
from usina.client import Client, FreshKey, Project, Resource, Tenant
from usina.core.errors import Unauthenticated, Unavailable, UsinaError
from usina.core.units import GiB, MiB

LINES = "uname -a; hostname; head -1 /etc/os-release; cloud-init status --wait | tail -1"
TINY_LINES = "uname -a; hostname; cat /proc/loadavg"
PATIENCE = 900.0


def demo(
    image: Annotated[str, typer.Option(help="Recipe of the image: debian-12, or tiny.")] = "debian-12",
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder for the factory; else a temporary one.", metavar="FOLDER")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running, and say how to go on.")] = False,
    endpoint: Annotated[
        str, typer.Option(help="Use this site instead, as the operator logged in.", metavar="URL")
    ] = "",
    accelerator: Annotated[str, typer.Option(help="How guests run here: auto, kvm or tcg.")] = "auto",
    driver: Annotated[str, typer.Option(help="Driver of this machine.", hidden=True)] = "libvirt",
) -> None:
    """Show the whole of it on this machine, then clean up.

    A factory, a tenant, a project, a member with a key, an image, a machine, a command in it over SSH, its story,
    its end. Takes well under a minute with KVM, about one and a half without; the first time an image is built.

    Examples:
      usina demo
      usina demo --image tiny
      usina demo --keep --data-dir /tmp/factory
    """
    steps = Steps()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up then, too
    with ExitStack() as undo:
        show = Demo(steps, undo, image, driver, accelerator, keep)
        try:
            show.play(data_dir, endpoint)
        except BaseException:
            show.tell_why()
            screen.say(Text("\ncleaning up after a failure", style="yellow"))
            raise
        if keep:
            undo.pop_all()
            show.hand_over()
            return
    show.verdict()


class Demo:
    """The play, scene by scene. The stage is `site` (the operator's eyes) and `ada_site` (the member's)."""

    def __init__(self, steps: Steps, undo: ExitStack, image: str, driver: str, accelerator: str, keep: bool) -> None:
        self.steps, self.undo, self.recipe, self.keep = steps, undo, image, keep
        self.driver, self.accelerator = driver, accelerator
        self.machine: Resource | None = None
        self.site: Client | None = None
        self.factory: OwnFactory | None = None
        self.folder = Path()
        self.key: FreshKey | None = None
        self.suffix = ""

    def play(self, data_dir: Path | None, endpoint: str) -> None:
        self.folder = self._folder(data_dir)
        site = self.site = self._stage(endpoint)
        tenant, project = self._people(site)
        ada_site = self._ada(site, tenant, project)
        image = self._image(site, project)
        machine = self._machine(ada_site, image)
        self._inside(ada_site, machine)
        self._story(ada_site, machine)
        if not self.keep:
            self._end(ada_site, machine)

    # --- the stage

    def _folder(self, data_dir: Path | None) -> Path:
        if data_dir is not None:
            data_dir = data_dir.expanduser().absolute()
            data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            return data_dir
        folder = Path(tempfile.mkdtemp(prefix="usina-demo-"))
        self.undo.callback(self.steps.undoing, f"removing {folder}", lambda: shutil.rmtree(folder))
        return folder

    def _stage(self, endpoint: str) -> Client:
        """A factory of our own with this machine as its host; or a site that runs already."""
        if endpoint:
            known = config.effective()
            if not known.token:
                raise Unauthenticated("log in to that site as its operator first", code="not-logged-in")
            self.suffix = f"-{os.getpid()}"  # beside what others have there
            site = Client(endpoint, known.token)
            with self.steps.step("Looking at the site") as say:
                say(f"{endpoint}, version {site.site().version}, as {site.whoami().name}")
            return site
        with self.steps.step("Starting a factory of its own") as say:
            factory = self.factory = OwnFactory(self.folder)
            self.undo.callback(self.steps.undoing, "stopping the factory", factory.stop)
            site = factory.start()
            say(f"{factory.endpoint}, data in {factory.data_dir}")
        with self.steps.step("Taking this machine into service") as say:
            uri = "qemu:///system" if os.geteuid() == 0 else "qemu:///session"
            options = {"uri": uri, "accelerator": self.accelerator}
            host = site.hosts.add("local", self.driver, options if self.driver == "libvirt" else {})
            self.undo.callback(self.steps.undoing, "taking this machine out of service", lambda: self._drop_host(site))
            accelerator = host.facts.get("accelerator", "?")
            reason = host.facts.get("accelerator_reason", "")
            say(f"{host.cores} cores, {screen.size(host.memory)}, runs guests by {accelerator}: {reason}")
        return site

    def _drop_host(self, site: Client) -> None:
        site.hosts.remove("local")
        left = [host.name for host in site.hosts.list()]
        self.steps.check("no host is left", not left)

    # --- people

    def _people(self, site: Client) -> tuple[Tenant, Project]:
        name = f"acme{self.suffix}"
        with self.steps.step("Creating a tenant and its project, with a quota") as say:
            tenant = site.tenants.create(name)
            self.undo.callback(
                self.steps.undoing, f"deleting tenant {name} and its member", lambda: site.tenants.delete(tenant.id)
            )
            project = site.projects.create("research", tenant.id)
            self.undo.callback(
                self.steps.undoing,
                "deleting project research and its network",
                lambda: site.projects.delete(project.id),
            )
            site.quotas.set(tenant.id, {"machines": 4, "cores": 8, "memory": 8 * GiB, "disk": 100 * GiB})
            say(f"tenant {name}, project research; at most 4 machines, 8 cores, 8GiB, disk 100GiB")
        return tenant, project

    def _ada(self, site: Client, tenant: Tenant, project: Project) -> Client:
        """Member ada, an SSH key, a key of hers; the site as she sees it."""
        with self.steps.step("Creating member ada, with an SSH key and a key of her own") as say:
            public = _make_ssh_key(self.folder / "id_ed25519")
            ada = site.members.create("ada", tenant.id, ssh_keys=[public], roles={project.id: "member"})
            self.key = site.keys.create("demo", member=ada.id, project=project.id)
            say("role member in research; her key works in that project only")
        return self.undo.enter_context(Client(site.endpoint, self.key.token, project=project.id))

    # --- machines

    def _image(self, site: Client, project: Project) -> Resource:
        with self.steps.step(f"Making image {self.recipe} by recipe") as say:
            ordered = site.images.create(
                f"{self.recipe}{self.suffix}", recipe=self.recipe, visibility="public", project=project.id
            )
            self.undo.callback(
                self.steps.undoing,
                f"deleting image {ordered.name}",
                lambda: _gone(site, site.images.delete(ordered.id)),
            )
            with progress.watching() as watcher:
                image = site.wait(ordered, timeout=3600, watch=watcher)
            say(f"{screen.size(image.status.get('virtual_size'))}, log in as {image.spec['user']}")
        return image

    def _machine(self, ada: Client, image: Resource) -> Resource:
        with self.steps.step("As ada: ordering machine hello, 2 cores and 1GiB") as say:
            disk = max(2 * GiB, int(image.status.get("virtual_size") or 0))
            ordered = self.machine = ada.machines.create("hello", image.id, cores=2, memory=1024 * MiB, disk=disk)
            self.undo.callback(self._drop_after_failure, ada, ordered)
            with progress.watching() as watcher:
                machine = ada.wait(ordered, ["running"], timeout=PATIENCE, watch=watcher)
            card = machine.spec["interfaces"][0]
            say(f"{machine.phase} at {card['address']}, {machine.status['accelerator']}")
        return machine

    def _inside(self, ada: Client, machine: Resource) -> None:
        if self.driver == "fake":  # nothing runs there
            return
        with self.steps.step("As ada: waiting until SSH answers in it") as say:
            machine_inside.await_ssh(ada, machine, PATIENCE)
            say("through the site; the machine has no public address")
        with self.steps.step("As ada: running commands in it over SSH") as say:
            for line in self._run(ada, machine).splitlines():
                say(line)

    def _run(self, ada: Client, machine: Resource) -> str:
        """The output of a few commands in the machine, by the system's ssh."""
        assert self.key is not None
        login = machine_inside.login_of(ada, machine)
        lines = TINY_LINES if self.recipe == "tiny" else LINES
        command = machine_inside.ssh_command(
            machine, login.user, False, [lines], identity=self.folder / "id_ed25519", quiet=True
        )
        environment = {**os.environ, "USINA_ENDPOINT": ada.endpoint, "USINA_TOKEN": self.key.token}
        environment["USINA_CONFIG_DIR"] = str(self.folder)
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
        if ran.returncode != 0:
            raise Unavailable(f"ssh ended with {ran.returncode}: {ran.stderr.strip()[-500:]}", code="ssh-failed")
        return ran.stdout

    def _story(self, ada: Client, machine: Resource) -> None:
        with self.steps.step("Its story: all that happened, and why"):
            screen.out().print(story.story_table(ada.story(machine.id)))

    # --- the end

    def _end(self, ada: Client, machine: Resource) -> None:
        with self.steps.step("As ada: deleting it") as say:
            self._drop_machine(ada, machine)
            say("gone, with its disk and address")
        with self.steps.step("Looking for what is left of it") as say:
            self.steps.check("no machine is listed", not list(ada.machines.list()))
            used = ada.quotas.get(ada.project or "").used
            self.steps.check("nothing is counted against the quota", not any(used.values()))
            if self.factory is not None and self.site is not None:
                held = [c for c in self.site.hosts.claims("local") if c.cores or c.memory or c.disk]
                self.steps.check("no capacity is held on the host", not held)
            say("no machine, nothing used of the quota, no claim on the host")

    def _drop_machine(self, ada: Client, machine: Resource) -> None:
        if self.machine is not None:
            _gone(ada, ada.machines.delete(machine.id))
            self.machine = None

    def _drop_after_failure(self, ada: Client, machine: Resource) -> None:
        if self.machine is not None:
            self.steps.undoing("deleting machine hello", lambda: self._drop_machine(ada, machine))

    def tell_why(self) -> None:
        """The story of what went wrong, if there is a machine to tell of; else the factory's last words."""
        try:
            if self.machine is not None and self.site is not None:
                screen.err().print(story.story_table(self.site.story(self.machine.id)))
                return
        except UsinaError:
            pass
        if self.factory is not None:
            screen.say(self.factory.last_words())

    def hand_over(self) -> None:
        assert self.key is not None and self.site is not None
        lines = [
            "everything was left running; go on as ada:",
            f"  usina login {self.site.endpoint} --token {self.key.token}",
            f"  usina ssh hello -i {self.folder / 'id_ed25519'}",
        ]
        if self.factory is not None:
            lines.append(f"to stop the factory: kill {self.factory.pid}")
        for line in lines:
            screen.out().print(line, soft_wrap=True)

    def verdict(self) -> None:
        """The last line. Raises `typer.Exit` when something was left behind."""
        took = self.steps.total()
        if self.steps.problems:
            for problem in self.steps.problems:
                screen.fail(problem)
            screen.say(Text(f"{took:.0f} s; something was left behind", style="bold red"))
            raise typer.Exit(1)
        screen.out().print(Text(f"✔ done in {took:.0f} s, nothing left behind", style="bold green"))


def _gone(site: Client, leaving: Resource) -> None:
    site.wait_gone(leaving, timeout=PATIENCE)


def _make_ssh_key(path: Path) -> str:
    """A fresh key pair; the public half."""
    path.unlink(missing_ok=True)
    made = subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        raise Unavailable(f"ssh-keygen failed: {made.stderr.strip()}", code="no-ssh")
    return path.with_suffix(".pub").read_text().strip()
