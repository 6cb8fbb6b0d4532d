"""The XML that the libvirt driver writes, as golden files, each held against libvirt's own schemas.

`USINA_WRITE_GOLDEN=1 pytest tests/unit/test_libvirt_xml.py` writes them anew; read the difference before keeping it.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from usina.core.capacity import DeviceKind
from usina.core.errors import Invalid
from usina.core.machine import Card, DevicePlan, Firmware, ImageFiles, InterfacePlan, MachinePlan, NetworkPlan, Rule
from usina.core.network import mac_of
from usina.core.units import GiB, MiB
from usina.drivers.libvirt import metadata, names, settings
from usina.drivers.libvirt.devices import mdev_xml
from usina.drivers.libvirt.domain_xml import Files, Ground, disk_target, domain_xml
from usina.drivers.libvirt.filter_xml import filter_xml, same_filter, shelter_xml
from usina.drivers.libvirt.inventory import Texts, build_inventory, read_devices, read_nodes
from usina.drivers.libvirt.network_xml import Book, network_xml, read_book
from usina.drivers.libvirt.plugs import binding_xml
from usina.drivers.libvirt.probe import Accelerator, boot_sector
from usina.drivers.libvirt.seed import seed_iso
from usina.drivers.libvirt.xml import parse
from usina.ports.driver import HostSettings

GOLDEN = Path(__file__).parent / "golden"
HANDLE = "mch-01k0000000000000000000000"
VOLUME = "vol-01k0000000000000000000abc"
MAC = "52:54:00:12:34:56"

NETWORK = NetworkPlan(
    "net-01k0000000000000000000000", "10.80.4.0/22", "10.80.4.1", "phys.example", ((MAC, "10.80.4.10", "one"),)
)
SMALL = NetworkPlan(
    "net-01k0000000000000000000001",
    "10.80.8.8/29",
    "10.80.8.9",
    "b.example",
    (("52:54:0a:50:08:0c", "10.80.8.12", "two"),),
)
PLAIN = MachinePlan(
    handle=HANDLE,
    hostname="one",
    cores=2,
    memory=2 * GiB,
    disk=20 * GiB,
    image=ImageFiles(digest="ab" * 32, disk="/images/debian.qcow2"),
    meta_data="instance-id: one\n",
    user_data="#cloud-config\n",
    network_config="",
    interfaces=(InterfacePlan(MAC, "10.80.4.10", NETWORK.handle, (Rule("in", "tcp", (22, 22)),)),),
    networks=(NETWORK,),
    volumes=(VOLUME,),
    title='uni/physics/<one> & "two" \'\x00',
)
GROUND = Ground(
    factory="f1",
    accelerator="kvm",
    files=Files(root="/pool/root.qcow2", seed="/pool/seed.iso", console_log="/pool/console.log"),
    volumes={VOLUME: f"/pool/volume-{VOLUME}.qcow2"},
    node_cpus={0: tuple(range(0, 56)), 1: tuple(range(56, 112))},
    marks={"reboots": 3},
)
GPU, VF = DevicePlan("0000:1b:00.0", DeviceKind.GPU), DevicePlan("0000:3b:01.2", DeviceKind.VF)
MDEV = DevicePlan("0000:ca:00.4/nvidia-558", DeviceKind.MDEV)
KERNEL = replace(GROUND.files, kernel="/pool/kernel", initrd="/pool/initrd")
NUMA = replace(
    PLAIN, cores=8, memory=64 * GiB, cpus=(4, 5, 6, 7, 60, 61, 62, 63), nodes=(0, 1), hugepage=GiB, volumes=()
)

DOMAINS = {
    "plain": domain_xml(PLAIN, GROUND),
    "kernel-tcg": domain_xml(
        replace(PLAIN, image=replace(PLAIN.image, cmdline="console=ttyS0 a<b")),
        replace(GROUND, accelerator="tcg", files=KERNEL),
    ),
    "pinned-numa-hugepages": domain_xml(NUMA, GROUND),
    "one-node": domain_xml(replace(PLAIN, nodes=(1,)), GROUND),
    "gpu": domain_xml(replace(NUMA, devices=(GPU,)), GROUND),
    "vf": domain_xml(replace(PLAIN, devices=(VF,)), GROUND),
    "mdev": domain_xml(replace(PLAIN, devices=(MDEV,)), GROUND),
    "uefi": domain_xml(replace(PLAIN, firmware=Firmware.UEFI), GROUND),
    "multiqueue": domain_xml(replace(PLAIN, queues=4), GROUND),
    "session": domain_xml(PLAIN, replace(GROUND, session=True)),
}
RULES = (
    Rule("in", "tcp", (22, 22), "192.0.2.0/24"),
    Rule("in", "icmp"),
    Rule("in", "udp", (60000, 61000)),
    Rule("out", "all"),
    Rule("out", "tcp", (0, 0), "198.51.100.7/32"),
)
OTHERS = {
    "network": (network_xml(NETWORK, "f1"), "network"),
    "small-network": (network_xml(SMALL, "f1"), "network"),
    "filter": (filter_xml("f1", HANDLE, MAC, RULES), "nwfilter"),
    "shelter": (shelter_xml("f1", ["192.0.2.9", "10.80.4.1"], ["10.80.4.0/22", "192.168.122.0/24"]), "nwfilter"),
    "binding": (binding_xml("f1", "tsk-1.2", "ut-0123456789", Card(PLAIN.interfaces[0], NETWORK)), "nwfilterbinding"),
    "mdev-device": (mdev_xml(MDEV.address, names.mdev_uuid(HANDLE, MDEV.address)), "nodedev"),
}
CASES = {name: (text, "domain") for name, text in DOMAINS.items()} | OTHERS


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    text, _ = CASES[name]
    path = GOLDEN / f"libvirt-{name}.xml"
    if os.environ.get("USINA_WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", [name for name in CASES if name != "mdev-device"])
def test_libvirt_finds_it_valid(name: str, tmp_path: Path) -> None:
    text, schema = CASES[name]
    file = tmp_path / "it.xml"
    file.write_text(text)
    done = subprocess.run(["virt-xml-validate", str(file), schema], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_text_of_a_tenant_becomes_xml() -> None:
    evil = "</title><on_crash>preserve</on_crash>\x00\ud800]]>"
    image = replace(PLAIN.image, cmdline=evil)
    plan = replace(PLAIN, title=evil, hostname=evil, image=image)
    tree = ElementTree.fromstring(domain_xml(plan, replace(GROUND, files=KERNEL)))
    assert [element.text for element in tree.iter("on_crash")] == ["destroy"]
    assert "</title>" in (tree.findtext("title") or "")


def test_marks_survive_reading_and_writing() -> None:
    text = '<guest factory="f" handle="h"><mark name="reboots" token="1"/></guest>'  # as libvirt gives it out
    text = metadata.with_mark(metadata.with_mark(text, "reboots", 2), "restore", 1)
    assert text.count("<mark") == 2
    assert 'name="reboots" token="2"' in text
    assert metadata.read_marks(ElementTree.fromstring(DOMAINS["plain"])) == {"reboots": 3}


def test_cores_are_split_where_their_processors_are() -> None:
    plan = replace(NUMA, cpus=(4, 60, 5, 61, 6, 62, 7, 63))
    cells = ElementTree.fromstring(domain_xml(plan, GROUND)).findall("cpu/numa/cell")
    assert [cell.get("cpus") for cell in cells] == ["0,2,4,6", "1,3,5,7"]


@pytest.mark.parametrize(("cores", "memory", "hugepage"), [(3, 5 * GiB, GiB), (2, 513 * MiB, 0), (7, 3 * GiB, 2 * MiB)])
def test_nothing_is_lost_when_split_over_nodes(cores: int, memory: int, hugepage: int) -> None:
    plan = replace(PLAIN, cores=cores, memory=memory, hugepage=hugepage, nodes=(0, 1))
    cells = ElementTree.fromstring(domain_xml(plan, GROUND)).findall("cpu/numa/cell")
    assert sum(int(cell.get("memory", "0")) for cell in cells) * 1024 == memory
    assert sum(len((cell.get("cpus") or "").split(",")) for cell in cells) == cores
    assert all(int(cell.get("memory", "0")) * 1024 % (hugepage or MiB) == 0 for cell in cells)


def test_disk_targets_go_on_after_z() -> None:
    assert [disk_target(n) for n in (0, 1, 25, 26, 27, 701, 702)] == [
        "vda",
        "vdb",
        "vdz",
        "vdaa",
        "vdab",
        "vdzz",
        "vdaaa",
    ]


def test_filters_are_compared_by_what_they_say() -> None:
    text = filter_xml("f1", HANDLE, MAC, RULES)
    assert same_filter(text, text.replace("  ", ""))
    assert not same_filter(text, filter_xml("f1", HANDLE, MAC, RULES[:-1]))
    with pytest.raises(ValueError):
        filter_xml("f1", HANDLE, MAC, (Rule("in", "tcp", (1, 2), "::/0"),))


def test_names_fit_their_places() -> None:
    assert len(names.network("f1", NETWORK.handle)) <= 15
    assert len(names.serial(VOLUME)) <= 20
    assert names.volume_handle(f"/any/where/{names.volume(VOLUME)}") == VOLUME
    assert names.volume_handle("/any/root-x.qcow2") is None


def test_entries_of_other_machines_stay_and_clashing_ones_go() -> None:
    known = [(f"52:54:00:00:00:0{n}", f"10.80.4.{n}", f"m{n}") for n in range(1, 6)]
    wanted = [
        ("52:54:00:00:00:01", "10.80.4.11", "m1"),  # the same card at another address
        ("52:54:00:AA:00:00", "10.80.4.2", "new"),  # another card at the address of the second
        ("52:54:00:bb:00:00", "10.80.4.30", "m3"),  # another card with the name of the third
        ("52:54:00:cc:00:00", "10.80.4.31", ""),  # one without a name
    ]
    book = Book({}, {}).with_hosts(known).with_hosts(wanted)
    assert book.with_hosts(wanted) == book
    gone = known[0][0], known[1][0]
    cards = {mac: address for mac, address, _ in known} | {mac.lower(): address for mac, address, _ in wanted}
    assert book.cards == {mac: address for mac, address in cards.items() if mac != gone[1]}
    assert book.names == {
        "10.80.4.2": "new",
        "10.80.4.4": "m4",
        "10.80.4.5": "m5",
        "10.80.4.11": "m1",
        "10.80.4.30": "m3",
    }
    less = book.without_name("52:54:00:BB:00:00")
    assert less == Book(book.cards, {address: name for address, name in book.names.items() if name != "m3"})


def test_a_network_of_the_usual_size_knows_all_its_cards_and_a_larger_one_those_it_is_told_of() -> None:
    whole = replace(NETWORK, cidr="10.80.4.0/24", hosts=(("52:54:0a:50:04:0a", "10.80.4.10", "one"),))
    book = read_book(network_xml(whole, "f1"))
    assert len(book.cards) == 253
    assert book.with_hosts(whole.hosts) == book == Book(book.cards, {"10.80.4.10": "one"})
    assert all(mac == mac_of(address) for mac, address in book.cards.items())
    assert {"10.80.4.1", "10.80.4.255"}.isdisjoint(book.cards.values())
    assert read_book(network_xml(NETWORK, "f1")) == Book({MAC: "10.80.4.10"}, {"10.80.4.10": "one"})


def test_no_filter_grows_with_the_networks_of_the_pool() -> None:
    known = ("192.0.2.9", "10.64.7.1"), ("10.64.7.0/24", "192.168.122.0/24")
    assert shelter_xml("f1", *known) == shelter_xml("f1", known[0][:1], known[1][1:])


def test_the_seed_is_what_cloud_init_looks_for() -> None:
    iso = seed_iso(replace(PLAIN, network_config="version: 2\n"))
    assert iso[0x8028:0x8048].decode().strip().lower() == "cidata"
    for text in (PLAIN.meta_data, PLAIN.user_data, "version: 2\n"):
        assert text.encode() in iso


def test_the_boot_sector_is_one() -> None:
    assert len(boot_sector()) == 512
    assert boot_sector().endswith(b"\x55\xaa")


# --- options


@pytest.mark.parametrize(
    "uri",
    [
        "qemu:///system",
        "qemu:///session",
        "qemu+ssh://root@host-1.example:2222/system",
        "qemu+ssh://[fd00::1]/system?keyfile=/etc/usina/key",
        "qemu+tls://host/system?pkipath=/etc/pki/usina",
    ],
)
def test_these_uris_pass(uri: str) -> None:
    settings.check({"uri": uri})


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "xen:///system",
        "test:///default",
        "qemu+ext:///system?command=/bin/sh",
        "qemu+ssh://host/system?command=/tmp/x",
        "qemu+ssh://host/system?netcat=/tmp/x",
        "qemu+tls://host/system?no_verify=1",
        "qemu+ssh://-oProxyCommand=x/system",
        "qemu+ssh://root@-oProxyCommand=x/system",
        "qemu+ssh://ho$(id)st/system",
        "qemu+ssh://host/system?keyfile=/a b",
        "qemu+ssh://host/system?keyfile=;id",
        "qemu+ssh://host/system#x",
        "qemu+ssh://host/embed?root=/",
        "qemu+tcp://host/system",
        "qemu+ssh://user:secret@host/system",
        "qemu:///system\n",
    ],
)
def test_these_uris_are_refused(uri: str) -> None:
    with pytest.raises(Invalid) as refusal:
        settings.check({"uri": uri})
    assert refusal.value.field == "uri"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pool", "relative"),
        ("pool", "/"),
        ("pool", "/etc"),
        ("pool", "/a/../b"),
        ("accelerator", "hvf"),
        ("color", "red"),
        ("pool", 3),
    ],
)
def test_other_options_are_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(Invalid) as refusal:
        settings.check({option: value})
    assert refusal.value.field == option


def test_a_remote_host_is_never_asked_questions_on_a_terminal() -> None:
    host = HostSettings("hst-01", "h", "f1", Path("/s"), {"uri": "qemu+ssh://root@h/system?keyfile=/etc/k"})
    read = settings.read(host)
    assert read.uri == "qemu+ssh://root@h/system?keyfile=/etc/k&no_tty=1"
    assert (read.ssh_host, read.ssh_key, read.local) == ("root@h", "/etc/k", False)


# --- inventory: an HGX with eight H100, a network card with virtual functions, and a vGPU board


def recorded() -> Texts:
    devices = tuple(path.read_text() for path in sorted((GOLDEN / "hgx").glob("*_*.xml")))
    return Texts(
        capabilities=(GOLDEN / "hgx/capabilities.xml").read_text(),
        domain_capabilities=(GOLDEN / "hgx/domcapabilities.xml").read_text(),
        devices=devices,
        disk=7 * 1024 * GiB,
        memory=2048 * GiB,
        version="10.0.0",
        hostname="hgx-01",
    )


def test_a_hgx_host_is_read() -> None:
    inventory = build_inventory(recorded(), Accelerator("kvm", "a probe guest booted"), session=False)
    assert inventory.cores == 224
    assert [len(node.cpus) for node in inventory.nodes] == [112, 112]
    assert inventory.nodes[0].cpus[:2] == (0, 1)
    assert inventory.nodes[0].hugepages == {GiB: 512}
    left = sum(node.memory + 512 * GiB for node in inventory.nodes)
    assert 2048 * GiB - left == pytest.approx(0.05 * 1024 * GiB, rel=0.01)  # five percent of ordinary memory
    assert {"kvm", "uefi", "hugepages", "numa", "pci-passthrough", "pinning", "mdev", "x86_64"} <= inventory.traits


def test_the_threads_of_its_cores_are_told_apart() -> None:
    inventory = build_inventory(recorded(), Accelerator("kvm", "a probe guest booted"), session=False)
    for node in inventory.nodes:
        assert len(node.siblings) == 56
        assert sorted(cpu for core in node.siblings for cpu in core) == list(node.cpus)
    assert inventory.nodes[0].siblings[:2] == ((0, 112), (1, 113))


@pytest.mark.parametrize(
    ("siblings", "wanted"),
    [
        (("0-1", "0-1", "2,3", "2,3"), ((0, 1), (2, 3))),
        (("0-1", "0-1", None, "3"), ((0, 1), (2,), (3,))),  # of a core that is partly off, nothing is told
        (("0", "1", "2", "3"), ()),
        ((None, None, None, None), ()),
    ],
)
def test_siblings_as_libvirt_writes_them(siblings: tuple[str | None, ...], wanted: tuple[tuple[int, ...], ...]) -> None:
    told = (f"<cpu id='{n}'" + (f" siblings='{one}'/>" if one else "/>") for n, one in enumerate(siblings))
    cell = f"<cell id='0'><memory unit='KiB'>1024</memory><cpus num='4'>{''.join(told)}</cpus></cell>"
    capabilities = parse(
        f"<capabilities><host><topology><cells num='1'>{cell}</cells></topology></host></capabilities>"
    )
    [node] = read_nodes(capabilities, 0)
    assert node.siblings == wanted


def test_its_devices_are_found_and_others_left_alone() -> None:
    devices = {device.address: device for device in read_devices(recorded().devices)}
    h100 = [device for device in devices.values() if device.vendor == "10de:2330"]
    assert len(h100) == 8
    assert sorted(device.node for device in h100 if device.node is not None) == [0] * 4 + [1] * 4
    assert h100[0].kind is DeviceKind.GPU
    assert "H100" in h100[0].model
    functions = [device for device in devices.values() if device.kind is DeviceKind.VF]
    assert [function.parent for function in functions] == ["0000:3b:00.0", "0000:3b:00.0"]
    assert devices["0000:ca:00.4"].mdev_types == {"nvidia-558": 4 + 1, "nvidia-560": 0}  # four left, and one is made
    assert "0000:3b:00.0" not in devices  # the physical function stays with the host
    assert "0000:02:00.0" not in devices  # the board's own VGA


def test_a_session_promises_no_devices() -> None:
    inventory = build_inventory(recorded(), Accelerator("tcg", "why"), session=True)
    assert "session" in inventory.traits
    assert not {"pci-passthrough", "multiqueue", "mdev"} & inventory.traits
