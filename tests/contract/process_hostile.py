"""What a hostile task tries, run inside a sandbox as a program of its own. Prints one JSON object: attempt → outcome.

Knows nothing but the standard library. `argv`: where the state folder is on the host, the handle and the host process
number of a victim, the victim's port, and what the host's groups are called.
"""

import ctypes
import errno
import fcntl
import json
import os
import socket
import sys

STATE, VICTIM, VICTIM_PID, PORT, GROUP = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
libc = ctypes.CDLL(None, use_errno=True)
found = {}


def attempt(name, action):
    try:
        found[name] = f"done: {action()!r}"[:200]
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, str(error))
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"


def call(number, *arguments):
    def do():
        result = libc.syscall(number, *arguments)
        if result < 0:
            raise OSError(ctypes.get_errno(), "")
        return result

    return do


def read(path):
    def do():
        with open(path, "rb") as file:
            return file.read(100)

    return do


def lines(path):
    with open(path) as file:
        return file.readlines()


def write(path, text="x"):
    def do():
        with open(path, "w") as file:
            file.write(text)

    return do


def connect(host, port):
    def do():
        with socket.create_connection((host, port), 2) as line:
            return line.recv(100)

    return do


for path in ("/etc/shadow", "/root/.ssh/id_rsa", STATE, f"{STATE}/socket", f"{STATE}/box/{VICTIM}/work/secret"):
    attempt(f"read {path.replace(STATE, 'state').replace(VICTIM, 'victim')}", read(path))
for place in ("/run", f"/run/{GROUP}", "/mnt", "/media", "/srv", "/opt", "/var/tmp", "/tmp"):
    attempt(f"read victim at {place}", read(f"{place}/{VICTIM}/work/secret"))
attempt("read victim's environment", read(f"/proc/{VICTIM_PID}/environ"))
attempt("signal victim", lambda: os.kill(VICTIM_PID, 0))
attempt("connect to victim", connect("127.0.0.1", PORT))
attempt("connect to warden", lambda: socket.socket(socket.AF_UNIX).connect(f"{STATE}/socket"))
found["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
found["signalled"] = [pid for pid in range(1, 33000) if pid != os.getpid() and libc.kill(pid, 0) == 0]
found["filesystems"] = sorted(line.split()[2] for line in lines("/proc/mounts"))
found["devices"] = sorted(os.listdir("/dev"))
found["groups"] = [line.strip() for line in lines("/proc/self/cgroup") if "usina" in line]
found["status"] = {
    line.split(":")[0]: line.split()[1]
    for line in lines("/proc/self/status")
    if line.startswith(("Cap", "NoNew", "Secc"))
}
found["files"] = sorted(os.listdir("/proc/self/fd"))

X86 = {
    "mount": (165, b"none", b"/tmp", b"tmpfs", 0, None),
    "umount": (166, b"/tmp", 0),
    "pivot_root": (155, b"/", b"/tmp"),
    "chroot": (161, b"/tmp"),
    "unshare user": (272, 0x10000000),
    "unshare mount": (272, 0x00020000),
    "setns": (308, 0, 0),
    "clone user": (56, 0x10000000 | 17, 0, 0, 0, 0),
    "clone3": (435, 0, 0),
    "fsopen": (430, b"tmpfs", 0),
    "move_mount": (429, -1, b"", -1, b"", 0),
    "open_tree": (428, -100, b"/", 1),
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, 0),
    "add_key": (248, b"user", b"x", b"y", 1, -1),
    "request_key": (249, b"user", b"x", 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "init_module": (175, 0, 0, b""),
    "finit_module": (313, 0, b"", 0),
    "delete_module": (176, b"x", 0),
    "userfaultfd": (323, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "io_uring_setup": (425, 1, 0),
    "reboot": (169, 0, 0, 0, 0),
    "swapon": (167, b"/work/x", 0),
    "quotactl": (179, 0, 0, 0, 0),
    "acct": (163, b"/work/x"),
    "iopl": (172, 3),
    "ioperm": (173, 0, 1, 1),
    "sethostname": (170, b"x", 1),
    "settimeofday": (164, 0, 0),
    "syslog": (103, 3, 0, 0),
    "ptrace victim": (101, 16, VICTIM_PID, 0, 0),
}
if os.uname().machine == "x86_64":
    for name, (number, *arguments) in X86.items():
        attempt(name, call(number, *arguments))

attempt("mknod", lambda: os.mknod("/work/disk", 0o60666, os.makedev(254, 0)))
attempt("setuid", lambda: os.setuid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("be root by su", lambda: os.system("su -c id root 2>/dev/null") == 0 or int("no"))
attempt("TIOCSTI", lambda: fcntl.ioctl(os.openpty()[1], 0x5412, b"x"))
attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
written = "/usr/x /etc/x /x /dev/x /bin/x /proc/sys/kernel/core_pattern /proc/sysrq-trigger"
topology = "/sys/x /sys/devices/system/cpu/cpu1/online /sys/devices/system/node/x"
for path in f"{written} {topology}".split():
    attempt(f"write {path}", write(path))
for path in ("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/proc/kcore", "/dev/net/tun", "/dev/kvm"):
    attempt(f"read {path}", read(path))
attempt("own memory works", lambda: bytearray(1 << 20) and None)
print(json.dumps(found))
