"""Where volumes of tasks may be seen, and how they are written on a command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.cli import task_words
from usina.core.errors import Invalid
from usina.core.mounts import check_mounts, within
from usina.core.task import File, Mount

NAMES = st.sampled_from(["a", "b", "data", ".hidden", "work", "tmp", "opt", "srv"])
PATHS = st.builds(lambda top, names: top + "/".join(names), st.sampled_from(["", "/", "./"]), st.lists(NAMES))


def placed(*paths: str, workdir: str = "", files: tuple[File, ...] = ()) -> list[str]:
    found = check_mounts([Mount("vol", path) for path in paths], workdir, files)
    return [mount.path for mount in found]


@pytest.mark.parametrize(
    ("path", "workdir", "found"),
    [
        ("/data", "", "/data"), ("data", "", "/work/data"), ("data/", "sub", "/work/sub/data"),
        ("./a//b", "", "/work/a/b"), ("//srv/x", "", "/srv/x"), ("x", "/opt/app", "/opt/app/x"),
        ("/usrx", "", "/usrx"), ("/tmp/x", "", "/tmp/x"), ("/var/lib/x", "", "/var/lib/x"),
    ],
)  # fmt: skip
def test_a_path_counts_from_where_the_command_begins(path: str, workdir: str, found: str) -> None:
    assert placed(path, workdir=workdir) == [found]


@pytest.mark.parametrize(
    "path",
    [
        "", "/", ".", "..", "a/../b", "/work", "/work/", "/tmp", "/usr", "/usr/local/x", "/etc/x", "/dev/shm/x",
        "/proc/1", "/sys", "/lib64/x", "a\nb", "/a\0", "x" * 300, "/" + "a/" * 600, "/var/tmp/x", "/run/x",
    ],
)  # fmt: skip
def test_places_that_are_for_nobody(path: str) -> None:
    with pytest.raises(Invalid) as refused:
        placed("/fine", path)
    assert refused.value.field == "volumes[1].path"


@given(st.lists(PATHS, max_size=6))
def test_none_lies_within_another(paths: list[str]) -> None:
    try:
        found = placed(*paths)
    except Invalid:
        return
    assert len(found) == len(paths) and all(path.startswith("/") and ".." not in path for path in found)
    assert not [(a, b) for a in found for b in found if a is not b and (within(a, b) or a == b)]
    assert placed(*found) == found


@given(PATHS, PATHS)
def test_the_order_does_not_matter(one: str, other: str) -> None:
    def good(*paths: str) -> bool:
        try:
            return bool(placed(*paths))
        except Invalid:
            return False

    assert good(one, other) == good(other, one)
    assert not good(one, other) or (good(one) and good(other))


@pytest.mark.parametrize(
    ("file", "good"), [("data/x", False), ("data", False), ("datax", True), ("/work/data/y", False)]
)
def test_files_go_elsewhere(file: str, good: bool) -> None:
    if good:
        assert placed("data", files=(File("0" * 64, file),))
        return
    with pytest.raises(Invalid) as refused:
        placed("data", files=(File("0" * 64, file),))
    assert refused.value.field == "files[0].path"


def test_too_many() -> None:
    with pytest.raises(Invalid) as refused:
        placed(*(f"/v{n}" for n in range(17)))
    assert refused.value.field == "volumes"


def test_on_a_command_line() -> None:
    assert task_words.volumes(["data:/data", "m:models:ro", "x:/a:b:rw"]) == [
        {"volume": "data", "path": "/data", "read_only": False},
        {"volume": "m", "path": "models", "read_only": True},
        {"volume": "x", "path": "/a:b", "read_only": False},
    ]
    for text in ("data", ":/data", "data:", "data::ro"):
        with pytest.raises(Invalid) as refused:
            task_words.volumes([text])
        assert refused.value.field == "volume"
