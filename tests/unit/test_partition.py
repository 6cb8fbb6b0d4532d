"""Partitions of devices: the published figures, and properties that hold for every model in the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usina.core.capacity import Device, DeviceKind, Part
from usina.core.units import GiB
from usina.placement.partition import (
    Geometry,
    Move,
    Repartition,
    best_start,
    blocked,
    capacity_left,
    compact,
    fragmentation,
    geometry_of,
    legal_starts,
    maximal,
    memory_of,
    moves_for,
    pick_start,
    placed,
    plan_repartition,
    resolve,
    states_of,
    tables,
)
from usina.placement.partition.geometry import read, shipped
from usina.placement.partition.states import EMPTY

ADDRESS = "0000:3b:00.0"
SEVEN = [geometry for geometry in shipped() if (geometry.compute, geometry.slices) == (7, 8)]
PAIR = Part(ADDRESS, profile="1g.10gb", start=0), Part(ADDRESS, profile="1g.10gb", start=4)


def known(model: str) -> Geometry:
    geometry = geometry_of(model)
    assert geometry is not None
    return geometry


def parts(*names: str) -> tuple[Part, ...]:
    return tuple(Part.parse(f"{ADDRESS}/{name}") for name in names)


def gpu(model: str = "NVIDIA H100 80GB HBM3", mode: str = "mig", **more: object) -> Device:
    return replace(Device(ADDRESS, DeviceKind.GPU, model, mode=mode), **more)  # type: ignore[arg-type]


def planned(plan: Repartition | str) -> Repartition:
    assert isinstance(plan, Repartition), plan
    return plan


def slices(geometry: Geometry, part: Part) -> set[int]:
    """Computed anew, without bit masks."""
    profile = geometry.named[resolve(geometry, part.profile) or ""]
    return {part.start * profile.stride + offset for offset in range(profile.width)}


def legal(geometry: Geometry, taken: Sequence[Part]) -> bool:
    """No two parts share a slice, all are on the device, and the rules of the table hold."""
    profiles = [geometry.named[resolve(geometry, part.profile) or ""] for part in taken]
    used = [index for part in taken for index in slices(geometry, part)]
    return (
        len(used) == len(set(used))
        and set(used) <= set(range(geometry.slices))
        and sum(profile.compute for profile in profiles) <= geometry.compute
        and sum(profile.variant == "me" for profile in profiles) <= 1
        and all(part.start in profile.starts for part, profile in zip(taken, profiles, strict=True))
        and all(count <= geometry.named[name].most for name, count in Counter(p.name for p in profiles).items())
        and (not geometry.uniform or len({profile.name for profile in profiles}) <= 1)
    )


@st.composite
def occupied(draw: st.DrawFn, models: Sequence[str] = ()) -> tuple[Geometry, tuple[Part, ...]]:
    """A device with legal parts, anywhere they are legal."""
    geometry = known(draw(st.sampled_from(models))) if models else draw(st.sampled_from(shipped()))
    taken: tuple[Part, ...] = ()
    for _ in range(draw(st.integers(0, 7))):
        profile = draw(st.sampled_from(geometry.profiles))
        starts = legal_starts(geometry, taken, profile.name)
        if starts:
            taken += (Part(ADDRESS, profile=profile.name, start=draw(st.sampled_from(starts))),)
    return geometry, taken


# the tables


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("NVIDIA H100 PCIe", "H100 80GB"),
        ("GH100 [H100 SXM5 80GB]", "H100 80GB"),
        ("H100", "H100 80GB"),
        ("NVIDIA H100 NVL", "H100 NVL 94GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("A100", "A100 40GB"),
        ("NVIDIA A30", "A30"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB300", "GB300"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000 Blackwell"),
        ("AMD Instinct MI300X", "MI300X"),
        ("Aqua Vanjaram [Instinct MI300A]", "MI300A"),
        ("AMD Instinct MI325X", "MI325X"),
        ("AMD Instinct MI355X", "MI350X"),
    ],
)
def test_models_are_known_by_the_names_that_the_field_gives_them(model: str, name: str) -> None:
    assert known(model).name == name
    assert geometry_of(model) is geometry_of(model)


@pytest.mark.parametrize("model", ["", "A40", "NVIDIA A100-SXM-64GB", "NVIDIA GH200 480GB", "AMD Instinct MI250X"])
def test_a_model_that_is_not_in_the_tables_has_no_geometry(model: str) -> None:
    assert geometry_of(model) is None
    assert pick_start(model, (), "1g") is None
    assert capacity_left(model, (), "1g") == 0


def test_profiles_are_found_without_case_by_alias_and_by_short_name() -> None:
    h100, a100, gb200 = known("H100"), known("A100 80GB"), known("GB200")
    assert [resolve(h100, name) for name in ("1G.10GB", "1g", "MIG 1g.10gb", "mig-1g.10gb", " 1g ")] == ["1g.10gb"] * 5
    assert resolve(h100, "1g+me") == resolve(h100, "1g.10gb.me") == "1g.10gb+me"
    assert resolve(h100, "1g.20gb") == "1g.20gb" and resolve(h100, "2g") == "2g.20gb"
    assert resolve(a100, "3g.39gb") == "3g.40gb" and resolve(gb200, "7g.189gb") == "7g.186gb"
    assert resolve(known("MI300X"), "CPX") == "cpx"
    assert [resolve(h100, name) for name in ("", "5g", "1g.5gb", "cpx")] == [None] * 4


@pytest.mark.parametrize("geometry", shipped(), ids=lambda geometry: geometry.name)
def test_every_name_of_a_profile_leads_to_one_profile(geometry: Geometry) -> None:
    for profile in geometry.profiles:
        assert resolve(geometry, profile.name) == profile.name
        assert len(set(profile.starts)) == len(profile.starts)
        assert memory_of(geometry, profile.name) <= max(other.memory for other in geometry.profiles)
    names = [name for profile in geometry.profiles for name in (profile.name, *profile.aliases)]
    assert len(set(names)) == len(names)


def test_memory_is_what_an_instance_has() -> None:
    assert memory_of(known("H100"), "1g") == int(9.75 * GiB)
    assert memory_of(known("A30"), "4g") == int(23.4375 * GiB)
    assert memory_of(known("MI300A"), "cpx") == 128 * GiB // 6
    with pytest.raises(KeyError):
        memory_of(known("H100"), "1g.5gb")


def test_a_new_model_is_only_rows() -> None:
    (toy,) = read(
        """
        [[geometry]]
        name = "Toy"
        scheme = "mig"
        models = ["toy 1"]
        compute = 2
        slices = 3
        profiles = [
          { name = "1g.1gb", compute = 1, slices = 1, starts = [1, 0], max = 2, gib = 1.0 },
          { name = "2g.3gb", compute = 2, slices = 3, starts = [0], max = 1, gib = 3.0 },
        ]
        """
    )
    assert len(placed(toy)) == 5 and len(maximal(toy)) == 2
    assert legal_starts(toy, parts("1g@1"), "1g") == (0,) and best_start(toy, (), "1g.1gb") == 1
    assert tables(toy).fits.shape == (2, 8) and legal_starts(toy, parts("1g@1"), "2g") == ()
    assert moves_for(toy, parts("1g@0"), "2g") is None and memory_of(toy, "2g") == 3 * GiB
    (pair,) = read(
        '[[geometry]]\nname="Pair"\nscheme="modes"\nmodels=["pair"]\nxcds=2\ngib=8.0\n'
        'modes=[{name="spx",partitions=1,nps=[1]},{name="cpx",partitions=2,nps=[1,2]}]'
    )
    assert legal_starts(pair, parts("cpx@1"), "cpx") == (0,) and legal_starts(pair, parts("cpx@1"), "spx") == ()


@pytest.mark.parametrize("row", ["starts = [8], max = 1", "starts = [0, 1], max = 1"])
def test_rows_that_make_no_sense_are_refused_by_name(row: str) -> None:
    with pytest.raises(ValueError, match=r"Bad: .*1g\.1gb"):
        read(
            '[[geometry]]\nname = "Bad"\nscheme = "mig"\nmodels = ["bad"]\ncompute = 8\nslices = 8\n'
            f'profiles = [{{ name = "1g.1gb", compute = 1, slices = 1, gib = 1, {row} }}]'
        )


# states


@pytest.mark.parametrize("geometry", SEVEN, ids=lambda geometry: geometry.name)
def test_layouts_number_as_published(geometry: Geometry) -> None:
    assert (len(placed(geometry)), len(maximal(geometry))) == (298, 19)
    double = frozenset({"double"})
    assert (len(placed(geometry, double)), len(maximal(geometry, double))) == (723, 78)


def test_a30_has_five_layouts_and_an_amd_mode_is_one() -> None:
    assert len(maximal(known("A30"))) == 5
    assert [len(maximal(known(model))) for model in ("MI300X", "MI300A")] == [4, 3]


@pytest.mark.parametrize("geometry", shipped(), ids=lambda geometry: geometry.name)
def test_every_layout_is_legal_and_its_occupancy_is_reachable(geometry: Geometry) -> None:
    variants = frozenset(profile.variant for profile in geometry.profiles)
    reachable = states_of(geometry).reachable
    masks = {
        sum(1 << index for index in used) for used in map(lambda layout: _used(geometry, layout), placed(geometry))
    }
    assert masks <= {occupancy.mask for occupancy in reachable} and EMPTY in reachable
    assert all(legal(geometry, [_part(one) for one in layout]) for layout in placed(geometry, variants)[::7])


def _part(placement: tuple[str, int]) -> Part:
    return Part(ADDRESS, profile=placement[0], start=placement[1])


def _used(geometry: Geometry, layout: Sequence[tuple[str, int]]) -> set[int]:
    return {index for placement in layout for index in slices(geometry, _part(placement))}


def test_known_waste() -> None:
    h100 = known("H100")
    halves, ones = parts("3g.40gb@0", "3g.40gb@4"), parts(*(f"1g.10gb@{start}" for start in range(7)))
    assert not any(legal_starts(h100, halves, profile.name) for profile in h100.profiles)  # a compute slice stranded
    assert not any(legal_starts(h100, ones, profile.name) for profile in h100.profiles)  # memory slice 7 left over
    assert fragmentation(h100, halves) == 0 and fragmentation(h100, ones) == 1 / 8
    assert all(legal_starts(h100, parts(f"1g@{start}"), "4g") == () for start in range(4))


def test_fragmentation_is_what_the_mix_cannot_use() -> None:
    h100 = known("H100")
    assert fragmentation(h100, (), {"7g": 1}) == 0
    assert fragmentation(h100, (), {"1g": 1}) == 1 / 8  # slice 7
    assert fragmentation(h100, parts("1g@6"), {"7g": 1}) == 7 / 8
    assert fragmentation(h100, parts("1g@6"), {"7g": 1, "3g": 3}) == pytest.approx((7 + 3 * 3) / 4 / 8)
    assert fragmentation(h100, parts("7g@0")) == 0 and fragmentation(h100, (), {"1g": 0}) == 0
    with pytest.raises(KeyError):
        fragmentation(h100, (), {"9g": 1})


def test_blocked_counts_the_placements_in_the_way_by_their_width() -> None:
    h100 = known("H100")
    assert blocked(h100, ()) == 0
    assert blocked(h100, parts("1g@6")) == 1 + 4 + 8  # itself, 3g at 4, 7g
    assert blocked(h100, parts("1g@0")) == 1 + 2 + 4 + 4 + 8


# choosing


def test_small_parts_are_stacked_so_that_4g_stays_possible() -> None:
    taken: tuple[Part, ...] = ()
    for expected in (6, 4, 5):
        assert pick_start("H100", taken, "1g") == expected
        taken += (Part(ADDRESS, profile="1g.10gb", start=expected),)
        assert legal_starts(known("H100"), taken, "4g.40gb") == (0,)
    rest = []
    while (start := pick_start("H100", taken, "1G")) is not None:
        rest.append(start)
        taken += (Part(ADDRESS, profile="1g.10gb", start=start),)
    assert sorted(rest) == [0, 1, 2, 3] and capacity_left("H100", taken, "1g") == 0
    assert pick_start("H100", (), "2g") == 4 and pick_start("H100", (), "3g") == 4


def test_there_is_one_set_of_media_extensions() -> None:
    taken = parts("1g.10gb+me@6")
    assert pick_start("H100", taken, "1g+me") is None and pick_start("H100", taken, "1g") == 4
    assert capacity_left("H100", (), "1g+me") == 1
    assert pick_start("A30", parts("1g.6gb+me@0"), "2g.12gb+me") is None


def test_parts_of_an_amd_device_are_alike() -> None:
    taken = parts("cpx@0", "cpx@5")
    assert pick_start("AMD Instinct MI300X", taken, "CPX") == 1
    assert pick_start("AMD Instinct MI300X", taken, "dpx") is None
    assert capacity_left("MI300X", taken, "cpx") == 6 and capacity_left("MI300A", (), "tpx") == 3
    assert [capacity_left("MI300X", (), mode) for mode in ("spx", "dpx", "qpx", "cpx", "tpx")] == [1, 2, 4, 8, 0]
    assert legal_starts(known("MI300X"), parts("dpx@0"), "dpx") == (1,)


@pytest.mark.parametrize("name", ["", "500m", "nvidia-63", "9g.80gb@0", "1g.10gb@7", "cpx@0"])
def test_what_is_no_partition_takes_the_whole_device(name: str) -> None:
    taken = parts(name) if name else (Part(ADDRESS),)
    assert pick_start("H100", taken, "1g") is None and capacity_left("H100", taken, "1g") == 0


@given(occupied())
def test_a_chosen_start_is_legal_and_harms_least(case: tuple[Geometry, tuple[Part, ...]]) -> None:
    geometry, taken = case
    assert legal(geometry, taken)
    for profile in geometry.profiles:
        expected = {
            start
            for start in profile.starts
            if legal(geometry, (*taken, Part(ADDRESS, profile=profile.name, start=start)))
        }
        starts = legal_starts(geometry, taken, profile.name)
        assert set(starts) == expected
        chosen = best_start(geometry, taken, profile.name)
        harm = [fragmentation(geometry, (*taken, Part(ADDRESS, profile=profile.name, start=start))) for start in starts]
        assert chosen == (starts[harm.index(min(harm))] if starts else None)


@given(occupied(), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_giving_back_returns_to_empty(
    case: tuple[Geometry, tuple[Part, ...]], random: object
) -> None:
    geometry, taken = case
    order = list(taken)
    random.shuffle(order)  # type: ignore[attr-defined]
    for profile in geometry.profiles:
        assert legal_starts(geometry, order, profile.name) == legal_starts(geometry, taken, profile.name)
    while order:
        given_back = order.pop()
        assert given_back.start in legal_starts(geometry, order, given_back.profile)
    assert fragmentation(geometry, order) == fragmentation(geometry, ()) and blocked(geometry, order) == 0


@given(occupied(["A30", "H100", "MI300A"]))
def test_capacity_left_is_the_best_packing(case: tuple[Geometry, tuple[Part, ...]]) -> None:
    geometry, taken = case
    for profile in geometry.profiles:
        starts = legal_starts(geometry, taken, profile.name)
        packed = 0
        for chosen in product((False, True), repeat=len(starts)):
            more = [Part(ADDRESS, profile=profile.name, start=s) for s, c in zip(starts, chosen, strict=True) if c]
            if len(more) > packed and legal(geometry, (*taken, *more)):
                packed = len(more)
        assert capacity_left(geometry.models[0], taken, profile.name) == packed


# arrays


@pytest.mark.parametrize("geometry", shipped(), ids=lambda geometry: geometry.name)
def test_tables_equal_brute_force(geometry: Geometry) -> None:
    table = tables(geometry)
    masks = range(1 << geometry.slices)
    plain = [profile for profile in geometry.profiles if not profile.variant]
    windows = {
        (p.name, s): sum(1 << i for i in slices(geometry, _part((p.name, s))))
        for p in geometry.profiles
        for s in p.starts
    }
    lost = []
    for mask in masks:
        free = {i for i in range(geometry.slices) if not mask >> i & 1}
        assert table.free_slices[mask] == len(free)
        usable = [
            {i for s in p.starts if not windows[p.name, s] & mask for i in free if windows[p.name, s] >> i & 1}
            for p in plain
        ]
        lost.append(sum(len(free - some) for some in usable) / len(plain) / geometry.slices)
        assert table.fragmentation[mask] == pytest.approx(lost[mask])
    for row, name in enumerate(table.profiles):
        profile = geometry.named[name]
        assert table.row(name) == row and table.width[row] == profile.width and not profile.media
        for mask in masks:
            fitting = [start for start in profile.starts if not windows[name, start] & mask]
            assert table.fits[row, mask] == bool(fitting)
            start = int(table.best_start[row, mask])
            assert table.best_mask[row, mask] == (mask | windows[name, start] if fitting else -1)
            if fitting:
                assert lost[mask | windows[name, start]] == pytest.approx(
                    min(lost[mask | windows[name, s]] for s in fitting)
                )
            else:
                assert start == -1


@given(occupied(["H100", "A30", "RTX PRO 6000"]))
def test_tables_agree_with_choosing(case: tuple[Geometry, tuple[Part, ...]]) -> None:
    geometry, taken = case
    table = tables(geometry)
    mask = sum(1 << index for part in taken for index in slices(geometry, part))
    assert table.fragmentation[mask] == fragmentation(geometry, taken) and table.blocked[mask] == blocked(
        geometry, taken
    )
    for row, name in enumerate(table.profiles):
        start = best_start(geometry, taken, name)
        assert table.best_start[row, mask] == (-1 if start is None else start)


def test_tables_cannot_be_written() -> None:
    with pytest.raises(ValueError):
        tables(known("H100")).fits[0, 0] = False


# moves


def follow(geometry: Geometry, taken: Sequence[Part], moves: Sequence[Move]) -> list[Part]:
    """Carries the moves out; each makes before it breaks."""
    now = list(taken)
    for move in moves:
        assert move.start in legal_starts(geometry, now, move.part.profile)
        now[now.index(move.part)] = move.moved
    return now


def test_one_move_makes_room() -> None:
    h100 = known("H100")
    assert moves_for(h100, PAIR, "4g") == (Move(PAIR[0], 5),)  # beside the other, where 2g at 4 is lost already
    assert moves_for(h100, PAIR[1:], "4g") == () and moves_for(h100, PAIR, "7g") is None
    assert moves_for(h100, PAIR, "9g") is None and moves_for(h100, (Part(ADDRESS),), "1g") is None
    assert moves_for(h100, parts("1g@0", "1g@0"), "1g") is None
    assert moves_for(known("MI300X"), parts("cpx@3"), "dpx") is None


@settings(deadline=None, max_examples=60)
@given(occupied(["A30", "H100", "RTX PRO 6000", "MI300A"]))
def test_moves_make_the_profile_fit_and_no_fewer_do(case: tuple[Geometry, tuple[Part, ...]]) -> None:
    geometry, taken = case
    for profile in geometry.profiles:
        moves = moves_for(geometry, taken, profile.name)
        if moves is not None:
            after = follow(geometry, taken, moves)
            assert legal(geometry, after) and legal_starts(geometry, after, profile.name)
            assert not moves or not legal_starts(geometry, taken, profile.name)
        if moves is None or len(moves) > 1:
            single = [Move(part, start) for part in taken for start in legal_starts(geometry, taken, part.profile)]
            assert not any(legal_starts(geometry, follow(geometry, taken, [move]), profile.name) for move in single)


@settings(deadline=None, max_examples=60)
@given(occupied(["A30", "H100", "MI300A"]))
def test_compacting_never_fragments_and_comes_to_rest(case: tuple[Geometry, tuple[Part, ...]]) -> None:
    geometry, taken = case
    moves = compact(geometry, taken)
    after = follow(geometry, taken, moves)
    assert legal(geometry, after) and compact(geometry, after) == ()
    assert fragmentation(geometry, after) < fragmentation(geometry, taken) if moves else after == list(taken)


# repartitioning


def test_only_what_is_in_the_way_is_drained() -> None:
    taken = parts("1g.10gb@0", "2g.20gb@2", "1g.10gb@4")
    plan = planned(plan_repartition(gpu(), taken, ["3g"]))
    assert (plan.drain, plan.destroy, plan.keep) == (taken[2:], taken[2:], taken[:2])
    assert plan.create == parts("3g.40gb@4") and (plan.before, plan.after, plan.idle, plan.nps) == (
        "mig",
        "mig",
        False,
        0,
    )


def test_parts_in_use_that_are_wanted_stay_unless_more_are_wanted() -> None:
    taken = parts("3g.40gb@4")
    plan = planned(plan_repartition(gpu(), taken, ["3g", "3g"]))
    assert (plan.drain, plan.keep, plan.create) == ((), taken, parts("3g.40gb@0"))
    assert planned(plan_repartition(gpu(), taken, ["3g"])).create == ()
    assert planned(plan_repartition(gpu(), taken, ["3g"], fresh=True)).create == parts("3g.40gb@0")


def test_idle_partitions_give_way_before_those_in_use() -> None:
    used, idle = parts("3g.40gb@4"), parts("1g.10gb@0", "2g.20gb@2")
    plan = planned(plan_repartition(gpu(), used, ["4g"], present=(*used, *idle)))
    assert (plan.drain, plan.destroy, plan.keep, plan.create) == ((), idle, used, parts("4g.40gb@0"))


def test_switching_mig_on_and_off_needs_the_device_idle() -> None:
    whole = (Part(ADDRESS),)
    on = planned(plan_repartition(gpu(mode=""), whole, ["3g", "4g"]))
    assert (on.drain, on.destroy, on.create) == (whole, (), parts("4g.40gb@0", "3g.40gb@4"))
    assert on.idle and (on.before, on.after) == ("", "mig")
    taken = parts("1g.10gb@6")
    off = planned(plan_repartition(gpu(), taken, [""]))
    assert (
        (off.drain, off.destroy, off.create) == (taken, taken, ())
        and off.idle
        and (off.before, off.after) == ("mig", "")
    )
    shares = parts("500m")
    assert plan_repartition(gpu(mode=""), shares, []) == Repartition(ADDRESS, "", "", keep=shares)
    assert planned(plan_repartition(gpu(mode=""), taken, ["1g"])).before == "mig"  # its parts say so


def test_an_amd_mode_is_for_the_whole_device() -> None:
    taken = parts("dpx@1")
    plan = planned(plan_repartition(gpu("AMD Instinct MI300X", "dpx"), taken, ["cpx"]))
    assert (
        plan.drain == plan.destroy == taken and plan.idle and (plan.before, plan.after, plan.nps) == ("dpx", "cpx", 1)
    )
    assert plan.create == parts(*(f"cpx@{index}" for index in range(8)))
    back = planned(plan_repartition(gpu("AMD Instinct MI300X", "dpx"), taken, []))
    assert back.drain == taken and not back.create and back.idle and (back.before, back.after) == ("dpx", "")
    same = planned(plan_repartition(gpu("AMD Instinct MI300X", "dpx"), taken, ["dpx", "dpx"]))
    assert same.keep == taken and not (same.drain or same.create or same.idle)
    more = planned(plan_repartition(gpu("AMD Instinct MI300X", "dpx"), taken, ["dpx", "dpx"], fresh=True))
    assert more.drain == taken and not more.destroy and not more.idle


def test_the_amd_memory_mode_stays_where_it_goes_with_the_new_mode() -> None:
    device = gpu("AMD Instinct MI300X", "spx", traits=frozenset({"nps4", "xgmi"}))
    assert [planned(plan_repartition(device, (), [mode])).nps for mode in ("cpx", "qpx", "dpx", "")] == [4, 4, 1, 1]
    assert planned(plan_repartition(replace(device, traits=frozenset({"nps2"})), (), ["dpx"])).nps == 2


@pytest.mark.parametrize(
    ("model", "wanted", "why"),
    [
        ("A40", ["1g"], "it is not known how to partition A40"),
        ("H100", ["5g"], "H100 80GB has no profile 5g; it has 1g.10gb, 1g.10gb+me"),
        ("H100", ["4g", "4g"], "4g.40gb + 4g.40gb do not go together on one H100 80GB"),
        ("H100", ["", "1g"], "the whole device and parts of it cannot be wanted together"),
        ("MI300X", ["cpx", "dpx"], "all partitions of one MI300X are alike, and cpx and dpx are not"),
        ("MI300X", ["dpx"] * 3, "MI300X has 2 partitions in mode dpx, not 3"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(model: str, wanted: list[str], why: str) -> None:
    plan = plan_repartition(gpu(model, ""), (), wanted)
    assert isinstance(plan, str) and plan.startswith(why)


@settings(deadline=None, max_examples=60)
@given(occupied(["A30", "H100", "RTX PRO 6000", "MI300X"]), st.data())
def test_a_plan_is_legal_and_keeps_what_it_says(case: tuple[Geometry, tuple[Part, ...]], data: st.DataObject) -> None:
    geometry, taken = case
    fresh = data.draw(st.booleans())
    wanted = data.draw(
        st.lists(st.sampled_from([profile.name for profile in geometry.profiles]), min_size=1, max_size=4)
    )
    mode = (taken[0].profile if taken else "spx") if geometry.uniform else "mig"
    device = gpu(geometry.models[0], mode)
    plan = plan_repartition(device, taken, wanted, fresh=fresh)
    assert plan == plan_repartition(device, taken[::-1], wanted, fresh=fresh)
    if isinstance(plan, str):
        assert not any(legal(geometry, layout) for layout in _placements(geometry, wanted))
        return
    assert {*plan.drain, *plan.keep} == set(taken) and not {*plan.drain} & {*plan.keep}
    assert legal(geometry, (*plan.keep, *plan.create)) and {*plan.destroy} <= {*plan.drain}
    if not geometry.uniform:
        counted = plan.create if fresh else (*plan.keep, *plan.create)
        assert not Counter(wanted) - Counter(part.profile for part in counted)
        assert plan.destroy == plan.drain and not plan.idle


def _placements(geometry: Geometry, wanted: Sequence[str]) -> list[tuple[Part, ...]]:
    starts = [[Part(ADDRESS, profile=name, start=start) for start in geometry.named[name].starts] for name in wanted]
    return list(product(*starts))


@settings(deadline=None, max_examples=40)
@given(occupied(["A30", "H100"]), st.sampled_from(["1g", "2g", "4g"]))
def test_no_fewer_slices_could_be_drained(case: tuple[Geometry, tuple[Part, ...]], profile: str) -> None:
    geometry, taken = case
    name = resolve(geometry, profile) or ""
    plan = planned(plan_repartition(gpu(geometry.models[0]), taken, [profile], fresh=True))
    width = sum(len(slices(geometry, part)) for part in plan.drain)
    least = min(
        sum(len(slices(geometry, part)) for part in taken if slices(geometry, part) & slices(geometry, new))
        for new in (Part(ADDRESS, profile=name, start=start) for start in geometry.named[name].starts)
    )
    assert width == least


def test_plans_do_not_depend_on_order() -> None:
    taken = parts("1g.10gb@1", "1g.10gb@3", "1g.10gb@5", "2g.20gb@6")[:3]
    plans = {plan_repartition(gpu(), order, ["4g", "1g"]) for order in permutations(taken)}
    assert len(plans) == 1
