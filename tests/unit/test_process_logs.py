"""Logs of runs: lines whole, secrets hidden however they arrive, segments bounded, positions true."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import example, given
from hypothesis import strategies as st

from usina.drivers.process.warden.logs import LONGEST, Lines, Log, masks

_LETTERS = st.binary(max_size=200).map(lambda data: bytes(b"abc\n\n\xff\xc3\xa9"[b % 8] for b in data))


def fed(data: bytes, cuts: list[int], secrets: tuple[bytes, ...] = ()) -> list[bytes]:
    """The texts of `data`, read in pieces."""
    lines, found, at = Lines("o", secrets), [], 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found += lines.feed(data[at:cut])
        at = cut
    found += lines.finish()
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in found)
    return [line[:-1].split(b" ", 2)[2] for line in found]


@given(_LETTERS, st.lists(st.integers(0, 1 << 20), max_size=8))
def test_how_it_was_read_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    expected = data.decode(errors="replace").split("\n")
    assert fed(data, cuts) == fed(data, [])
    whole = [line.decode(errors="replace") for line in data.split(b"\n")]
    assert [text.decode() for text in fed(data, cuts)] == (whole[:-1] if not whole[-1] else whole)
    assert len(expected) >= len(fed(data, cuts))


@given(
    st.lists(st.sampled_from([b"tok3n-value", b"tok3n", b"x", b" ", b"\n", b"tok3n-val", b"ue"]), max_size=40),
    st.lists(st.integers(0, 1 << 20), max_size=8),
)
def test_a_secret_never_shows(parts: list[bytes], cuts: list[int]) -> None:
    secrets = masks(["tok3n-value", "tok3n"])
    for text in fed(b"".join(parts), cuts, secrets):
        assert b"tok3n" not in text


@given(st.integers(0, 60), st.integers(1, 400), st.booleans())
@example(0, 1, True)
@example(30, 11, True)
def test_a_secret_at_the_cut_of_a_long_line_never_shows_in_part(before: int, masked: int, ended: bool) -> None:
    secret = b"0123456789abcdefghijklmnopqrst"
    filler = (secret + b".") * masked
    data = filler + b"." * (LONGEST - len(filler) + before if len(filler) < LONGEST else before) + secret
    for text in fed(
        data + b"tail" * 9000 + (b"\nnext" if ended else b""), [LONGEST, 2 * LONGEST], masks([secret.decode()])
    ):
        assert len(text) <= LONGEST
        assert b"01234567" not in text


def test_a_long_line_is_cut_and_the_next_is_whole() -> None:
    texts = fed(b"a" * 100_000 + b"\nnext\n" + b"\xff" * LONGEST + b"\n", [10_000, 30_000, 60_000])
    assert [len(text) <= LONGEST for text in texts] == [True, True, True]
    assert texts[0] == b"a" * LONGEST and texts[1] == b"next"
    texts[2].decode()


def test_secrets_of_several_lines_are_hidden_line_by_line() -> None:
    secret = "-----BEGIN KEY-----\nMIIEvQIBADANBg\nab\n-----END KEY-----"
    assert fed(f"x {secret} y\n".encode(), [], masks([secret])) == [b"x ***", b"***", b"ab", b"*** y"]
    assert masks(["", "short", "longer one"]) == (b"longer one", b"short")


def _line(number: int) -> bytes:
    return b"1 o line %06d\n" % number


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=12), st.integers(0, 1 << 20), st.integers(1, 5000))
def test_a_bounded_log_keeps_its_end_and_its_positions(counts: list[int], after: int, limit: int) -> None:
    with TemporaryDirectory() as folder:
        log, written = Log(folder, 1), 0
        for count in counts:
            log.write([_line(written + n) for n in range(count)])
            written += count
        size = len(_line(0))
        assert log.end == written * size
        assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= 4 * LONGEST + 2 * 3000 * size
        start, data = log.read(after, limit)
        nothing_follows = -(-after // size) * size >= log.end
        assert bool(data) is not nothing_follows
        if data:
            assert start >= after and data.endswith(b"\n")
            first = start // size
            assert start % size == 0 and data.splitlines(keepends=True) == [
                _line(first + n) for n in range(len(data) // size)
            ]
        log.close()
        again = Log(folder, 1)
        assert again.end == log.end and again.read(after, limit) == (start, data)


def test_all_of_a_log_is_read_piece_by_piece(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 1 << 20)
    lines = [_line(n) for n in range(2000)]
    log.write(lines)
    found, after = b"", 0
    while (piece := log.read(after, 777))[1]:
        assert piece[0] == after
        found, after = found + piece[1], piece[0] + len(piece[1])
    assert found == b"".join(lines) and log.last()[-1] + b"\n" == lines[-1]


def test_a_half_written_line_is_given_its_end(tmp_path: Path) -> None:
    (tmp_path / "log.100").write_bytes(b"1 o whole\n1 o ha")
    log = Log(str(tmp_path), 1 << 20)
    log.write([b"2 o next\n"])
    assert log.read(0, 1000) == (100, b"1 o whole\n1 o ha\n2 o next\n")
