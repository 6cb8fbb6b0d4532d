"""Runtimes turn models into tasks: memory by formulas, worked out by hand from published sizes; commands; refusals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from usina.core.capacity import DeviceKind, DeviceRequest
from usina.core.endpoint import EndpointSpec, Recipe, Variant
from usina.core.endpoint_tasks import PORTS, port_of, replica_task
from usina.core.errors import Invalid, Refused, UsinaError
from usina.core.footprint import DeviceOffer, Footprint, cache_of, context_of, spread, weights_of
from usina.core.model import Model, ModelFacts, ModelFile
from usina.core.resource import Kind, Resource
from usina.core.task import Network
from usina.core.units import GiB, MiB
from usina.ports.runtime import RuntimePlugin, Wish, fits
from usina.runtimes.external import PLUGIN as EXTERNAL
from usina.runtimes.llama_cpp import PLUGIN as LLAMA_CPP
from usina.runtimes.llama_cpp import serve
from usina.runtimes.llama_cpp.recipe import chosen, footprint
from usina.runtimes.nim import PLUGIN as NIM
from usina.runtimes.vllm import PLUGIN as VLLM
from usina.server import discovery

# Published shapes: parameters, layers, heads, KV heads, head size, hidden, vocabulary.
LLAMA_8B = ModelFacts("llama", 8_030_261_248, "bf16", 32, 32, 8, 128, 4096, 128_256, 131_072)
LLAMA_70B = ModelFacts("llama", 70_553_706_496, "bf16", 80, 64, 8, 128, 8192, 128_256, 131_072)
LLAMA_405B = ModelFacts("llama", 405_853_388_800, "bf16", 126, 128, 8, 128, 16_384, 128_256, 131_072)
SMOLLM2 = ModelFacts("llama", 134_515_008, "q4_1", 30, 9, 3, 64, 576, 49_152, 2048)
H100 = DeviceOffer("H100", 80 * GiB, 8)
CONTAINER = {"image": "registry.example/image:1"}


def model(name: str, facts: ModelFacts, **files: int) -> Model:
    held = tuple(ModelFile(path.replace("__", "."), size, f"{n:064x}") for n, (path, size) in enumerate(files.items()))
    return Model("mdl-1", name, "c" * 40, held, facts)


SMALL = model("a/small", SMOLLM2, model__gguf=98_000_000)
EIGHT = model("a/eight", LLAMA_8B, model__safetensors=16_060_522_496, config__json=1000)
SEVENTY = model("a/seventy", LLAMA_70B, model__safetensors=141_107_412_992, config__json=1000)
HUGE = model("a/huge", LLAMA_405B, model__safetensors=811_706_777_600, config__json=1000)


def wish(made_of: Model, runtime: str, stack: str = "container", **more: Any) -> Wish:
    given = {
        name: more.pop(name) for name in ("offers", "settings", "shares_network", "gangs", "adapters") if name in more
    }
    spec = EndpointSpec(Variant(made_of.name, made_of.revision), runtime, **more)
    return Wish(made_of, spec, stack, "chat", **{"settings": CONTAINER, "offers": (H100,)} | given)


def made(plugin: RuntimePlugin, one: Wish) -> Recipe:
    assert plugin.recipe is not None
    plugin.check(one.spec)
    return plugin.recipe(one)


def pairs(recipe: Recipe) -> dict[str, str]:
    words = recipe.task.command
    return {word: words[n + 1] for n, word in enumerate(words[:-1]) if word.startswith("--")}


# --- arithmetic


def test_the_cache_of_published_models() -> None:
    """2 × 32 × 8 × 128 × 2 bytes are 128 KiB a token for Llama 3.1 8B, 320 KiB for 70B; 22.5 KiB for SmolLM2."""
    assert cache_of(LLAMA_8B, 1) == 131_072
    assert cache_of(LLAMA_70B, 1) == 327_680
    assert cache_of(SMOLLM2, 8192) == 23_040 * 8192
    assert cache_of(LLAMA_8B, 8192, 1.0) == 512 * MiB


def test_weights_are_the_files_or_else_the_parameters() -> None:
    assert weights_of(EIGHT, (".safetensors",)) == 16_060_522_496
    assert weights_of(replace(EIGHT, files=()), (".safetensors",)) == 2 * 8_030_261_248
    assert (context_of(LLAMA_8B, 0), context_of(LLAMA_8B, 5), context_of(SMOLLM2, 0)) == (32_768, 5, 2048)


@pytest.mark.parametrize(
    ("facts", "tensor", "hosts"),
    [(LLAMA_8B, 1, 1), (LLAMA_70B, 4, 1), (LLAMA_405B, 8, 2)],
    ids=["8B", "70B", "405B"],
)
def test_models_of_published_sizes_on_h100(facts: ModelFacts, tensor: int, hosts: int) -> None:
    """In bf16, 32 Ki tokens of cache: 8B on one, 70B (141 + 11 GB) on four of 73 GB, 405B (812 + 17) on two nodes."""
    needs = Footprint(2 * facts.parameters, cache_of(facts, 32_768), 0)
    found = spread(needs, 4 * GiB, facts.heads, (replace(H100, hosts=4),), 0.9, many=True)
    assert found is not None and (found.tensor, found.pipeline) == (tensor, hosts)


def test_devices_divide_the_heads_and_one_host_has_them() -> None:
    needs = Footprint(100 * GiB, 0, 0)
    assert spread(needs, 0, 9, (H100,), 0.9, many=False) is None  # nine heads cannot be halved
    four = spread(needs, 0, 32, (DeviceOffer("L40S", 48 * GiB, 4), H100), 0.9, many=False)
    assert four is not None and (four.offer.model, four.tensor) == ("H100", 2)
    assert spread(Footprint(900 * GiB, 0, 0), 0, 32, (H100,), 0.9, many=False) is None


# --- llama.cpp


def test_llama_cpp_on_this_machine() -> None:
    recipe = made(LLAMA_CPP, wish(SMALL, "llama.cpp", "local", context=1024, slots=4))
    task = recipe.task
    assert (task.on, task.tool, task.image, task.network, recipe.port) == ("local", "llama.cpp", "", Network.NONE, 8000)
    assert [(file.path, file.shared) for file in task.files] == [("model/model.gguf", True)]
    words = pairs(recipe)
    assert words["--model"] == "model/model.gguf" and words["--alias"] == "chat" and words["--port"] == "{port}"
    assert (words["--ctx-size"], words["--parallel"], words["--n-gpu-layers"]) == ("4096", "4", "0")
    assert task.health is not None and task.health.path == "/health"


def test_the_memory_of_llama_cpp_by_hand() -> None:
    """98 MB + 23040 × 4096 (94.4 MB) + 160 MiB + 4 × 512 × (49152 + 8 × 576) (110.1 MB), and a tenth more."""
    one = wish(SMALL, "llama.cpp", "local", context=1024, slots=4)
    needs = footprint(one)
    assert (needs.weights, needs.cache) == (98_000_000, 94_371_840)
    assert needs.overhead == 167_772_160 + 110_100_480
    recipe = made(LLAMA_CPP, one)
    assert recipe.formula == "470.2 MB = 98.0 weights + 94.4 cache + 277.9 overhead"
    assert needs.total * 1.1 <= recipe.task.memory < needs.total * 1.1 + 64 * MiB
    small = footprint(replace(one, spec=replace(one.spec, options={"cache_type": "q4_0"})))
    assert small.cache == 94_371_840 * 18 // 64


def test_llama_cpp_in_containers_and_on_gpus() -> None:
    recipe = made(LLAMA_CPP, wish(SMALL, "llama.cpp", options={"gpu": "true"}))
    assert recipe.task.image == CONTAINER["image"] and recipe.task.command[0] == "/app/llama-server"
    (device,) = recipe.task.devices
    assert (device.kind, device.count, pairs(recipe)["--n-gpu-layers"]) == (DeviceKind.GPU, 1, "999")


def test_llama_cpp_takes_one_model_with_all_its_parts() -> None:
    parts = {f"big-0000{n}-of-00002__gguf": n * 10 for n in (1, 2)}
    split = model("a/b", SMOLLM2, **parts, **{"small__gguf": 5})
    with pytest.raises(Invalid, match="several GGUF files"):
        chosen(split, "")
    assert [f.size for f in chosen(split, "big-00001-of-00002.gguf")] == [10, 20]
    with pytest.raises(Invalid, match="no such file"):
        chosen(split, "other.gguf")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"options": {"cache_type": "f64"}}, "options.cache_type"),
        ({"options": {"gpu": "yes"}}, "options.gpu"),
        ({"options": {"pooling": "rank"}}, "options.pooling"),
    ],
)
def test_llama_cpp_refuses(more: dict[str, Any], told: str) -> None:
    with pytest.raises(Invalid) as caught:
        LLAMA_CPP.check(EndpointSpec(Variant("a/b"), "llama.cpp", **more))
    assert caught.value.field == told


def test_llama_cpp_numbers_its_adapters() -> None:
    adapters = {name: model(f"a/{name}", SMOLLM2, **{f"{name}-f16__gguf": 1 * MiB}) for name in ("law", "fr")}
    one = wish(SMALL, "llama.cpp", "local", adapters=adapters)
    assert footprint(one).weights == footprint(wish(SMALL, "llama.cpp", "local")).weights + 2 * MiB
    recipe = made(LLAMA_CPP, one)
    assert one.numbered == ("fr", "law")
    assert pairs(recipe)["--lora-scaled"] == "adapters/fr.gguf:0,adapters/law.gguf:0"
    assert [f.path for f in recipe.task.files] == ["model/model.gguf", "adapters/fr.gguf", "adapters/law.gguf"]
    assert recipe.mark != made(LLAMA_CPP, replace(one, adapters={"fr": adapters["fr"]})).mark
    assert "--lora-scaled" not in made(LLAMA_CPP, wish(SMALL, "llama.cpp", "local")).task.command


@pytest.mark.parametrize(
    ("adapter", "more", "field"),
    [
        (model("a/x", SMOLLM2, x__safetensors=1), {}, "adapters.x"),
        (model("a/x", SMOLLM2, one__gguf=1, two__gguf=1), {}, "adapters.x"),
        (model("a/x", SMOLLM2, one__gguf=1), {"options": {"pooling": "mean"}}, "adapters"),
    ],
)
def test_llama_cpp_refuses_adapters(adapter: Model, more: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        made(LLAMA_CPP, wish(SMALL, "llama.cpp", "local", adapters={"x": adapter}, **more))
    assert caught.value.field == field


def test_llama_cpp_says_how_little_memory_would_do() -> None:
    with pytest.raises(Invalid, match=r"memory: weights and buffers alone take 358\.") as caught:
        made(LLAMA_CPP, wish(SMALL, "llama.cpp", "local", memory=100 * MiB))
    assert caught.value.field == "memory"


def test_the_program_takes_what_recipes_say() -> None:
    recipe = made(LLAMA_CPP, wish(SMALL, "llama.cpp", "local", options={"cache_type": "q8_0"}))
    given = serve.options([word.replace("{port}", "8000") for word in recipe.task.command])
    assert (given.model, given.port, given.slots, given.cache_type_k) == ("model/model.gguf", 8000, True, "q8_0")


def test_embeddings_want_a_text_in_one_batch() -> None:
    """4 × 1024 × (9 × 1024 + 8 × 576), and no logits."""
    one = wish(SMALL, "llama.cpp", "local", context=1024, options={"pooling": "mean"})
    assert footprint(one).overhead == 167_772_160 + 56_623_104
    told = pairs(made(LLAMA_CPP, one))
    assert (told["--pooling"], told["--batch-size"], told["--ubatch-size"]) == ("mean", "1024", "1024")


# --- vLLM


def test_vllm_on_one_host() -> None:
    recipe = made(
        VLLM, wish(SEVENTY, "vllm", context=8192, slots=8, adapters={"fr": EIGHT}, options={"dtype": "bfloat16"})
    )
    words = recipe.task.command
    assert words[:5] == ("vllm", "serve", "model", "--served-model-name", "chat")
    told = pairs(recipe)
    assert (told["--tensor-parallel-size"], told["--max-model-len"], told["--dtype"]) == ("4", "8192", "bfloat16")
    assert "--pipeline-parallel-size" not in words and "--enable-lora" in words
    assert told["--lora-modules"] == "fr=adapters/fr"
    assert recipe.task.devices == (DeviceRequest(DeviceKind.GPU, 4, memory=80 * GiB),)
    assert ("adapters/fr/model.safetensors", True) in [(f.path, f.shared) for f in recipe.task.files]
    assert "on each device, cut over 4 x H100" in recipe.formula


def test_vllm_over_two_nodes_is_a_gang_of_ray() -> None:
    offers = (replace(H100, hosts=2),)
    one = wish(HUGE, "vllm", "slurm", context=4096, offers=offers, gangs=True, shares_network=True)
    recipe = made(VLLM, one)
    assert (recipe.task.replicas, recipe.task.devices[0].count, recipe.port) == (2, 8, 0)
    assert recipe.task.dialect == {"nodes": "2"}
    shell, flag, script = recipe.task.command
    assert (shell, flag) == ("/bin/sh", "-c")
    for word in ("ray start --head", "ray start --address", "--pipeline-parallel-size 2", "--tensor-parallel-size 8"):
        assert word in script
    assert script.count("--node-ip-address") == 2 and "RAY_AUTH_MODE=token" in script  # else anybody may run code there
    assert "VLLM_HOST_IP" not in recipe.task.environment
    with pytest.raises(Refused, match=r"8 x H100 of 80 GiB on a host"):
        made(VLLM, wish(HUGE, "vllm", offers=offers))


def test_vllm_takes_the_devices_and_nodes_that_are_ordered() -> None:
    gpus = (DeviceRequest(DeviceKind.GPU, 4, model="h100"),)
    more = {"devices": gpus, "options": {"nodes": "2"}, "offers": ()}
    recipe = made(VLLM, wish(HUGE, "vllm", "slurm", gangs=True, shares_network=True, **more))
    assert (recipe.task.replicas, recipe.task.devices) == (2, gpus)
    assert "--tensor-parallel-size 4" in recipe.task.command[2]
    with pytest.raises(Refused, match="does not run gangs"):
        made(VLLM, wish(HUGE, "vllm", **more))


def test_vllm_on_processors_is_told_what_it_has() -> None:
    options = {"device": "cpu", "enforce_eager": "true"}
    one = wish(EIGHT, "vllm", "local", offers=(), settings={}, options=options, context=8192, slots=4, cores=2.5)
    recipe = made(VLLM, one)
    assert recipe.task.tool == "vllm" and recipe.task.command[:2] == ("serve", "model")
    told = recipe.task.environment
    assert (told["VLLM_CPU_KVCACHE_SPACE"], told["OMP_NUM_THREADS"]) == ("4", "3")  # GiB: 32 x 8 x 128 x 2 x 2 x 32 Ki
    assert told["VLLM_HOST_IP"] == "127.0.0.1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in made(VLLM, wish(EIGHT, "vllm")).task.environment


def test_vllm_is_a_tool_where_the_operator_has_it(tmp_path: Path) -> None:
    assert VLLM.tool({}) is None
    with pytest.raises(Invalid, match=r"vllm\.environment: there is no vLLM in") as caught:
        VLLM.tool({"environment": str(tmp_path)})
    assert caught.value.field == "runtime"
    base, folder = tmp_path / "python", tmp_path / "environment"
    for program in (base / "bin" / "python3.12", folder / "lib/python3.12/site-packages/vllm/entrypoints/cli/main.py"):
        program.parent.mkdir(parents=True)
        program.touch()
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(base / "bin" / "python3.12")
    tool = VLLM.tool({"environment": str(folder)})
    assert tool is not None
    assert tool.folders == {"/usina/vllm/environment": str(folder), "/usina/vllm/python": str(base)}
    assert tool.command[-3:] == ("/usina/vllm/python/bin/python3.12", "-m", "vllm.entrypoints.cli.main")
    assert "PYTHONPATH=/usina/vllm/environment/lib/python3.12/site-packages" in tool.command
    assert "PYTHONSAFEPATH=1" in tool.command  # the folder that it is started in is made of a member's files
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/usr/bin/python3")
    system = VLLM.tool({"environment": str(folder)})
    assert system is not None and system.folders == {"/usina/vllm/environment": str(folder)}
    assert system.command[-3] == os.path.realpath("/usr/bin/python3")


def test_vllm_without_devices_says_what_it_needs() -> None:
    with pytest.raises(
        Refused, match=r"needs .* GB = 16\.1 weights .* no devices that tasks can be given whose memory is known"
    ):
        made(VLLM, wish(EIGHT, "vllm", offers=()))
    assert made(VLLM, wish(EIGHT, "vllm", offers=(), options={"device": "cpu"})).task.devices == ()


@pytest.mark.parametrize(
    "options", [{"dtype": "int3"}, {"kv_cache_dtype": "x"}, {"quantization": "A B"}, {"device": "tpu"}]
)
def test_vllm_refuses(options: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        VLLM.check(EndpointSpec(Variant("a/b"), "vllm", options=options))


# --- NIM, external, all of them


def test_nim_with_a_model_of_its_own_and_with_one_of_ours() -> None:
    gpu = (DeviceRequest(DeviceKind.GPU, 1),)
    bare = Model("", "llama-3.1-8b-instruct", "", ())
    brings = made(NIM, wish(bare, "nim", options={"image": "nvcr.io/nim/x:1"}, devices=gpu, context=2048))
    assert brings.task.environment["NIM_MAX_MODEL_LEN"] == "2048" and brings.secret == "NGC_API_KEY"
    assert brings.task.network is Network.OUTBOUND and brings.task.health is not None
    assert brings.task.health.path == "/v1/health/ready"
    ours = made(NIM, wish(EIGHT, "nim", context=8192))
    assert ours.task.environment["NIM_MODEL_PATH"] == "/work/model" and ours.task.network is Network.NONE
    with pytest.raises(Invalid, match="say how many GPUs"):
        made(NIM, wish(bare, "nim"))


@pytest.mark.parametrize("url", ["", "ftp://host", "https://user:pw@host/v1", "https://host/v1?x=1", "https://"])
def test_external_refuses_odd_addresses(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        EXTERNAL.check(EndpointSpec(Variant("m"), "external", url=url))
    assert caught.value.field == "url"


def test_the_shelf() -> None:
    found = discovery.runtimes()
    assert set(found.plugins) >= {"llama.cpp", "vllm", "nim", "external"} and not found.missing
    assert fits(VLLM, EIGHT) and not fits(VLLM, SMALL) and fits(NIM, SMALL)
    for settings in ({"vllm": {"picture": "x"}}, {"nobody": {}}):
        with pytest.raises(UsinaError):
            discovery.check_runtimes(settings)


def test_marks_change_with_what_replicas_are_made_of_only() -> None:
    one = wish(SMALL, "llama.cpp", "local", context=1024)
    first = made(LLAMA_CPP, one)
    assert made(LLAMA_CPP, replace(one, spec=replace(one.spec, maximum=9))).mark == first.mark
    assert made(LLAMA_CPP, replace(one, spec=replace(one.spec, slots=9))).mark != first.mark
    other = replace(SMALL, revision="d" * 40)
    assert made(LLAMA_CPP, replace(one, model=other)).mark != first.mark


def test_a_replica_is_a_task_with_a_port_of_its_own_where_ports_are_shared() -> None:
    recipe = made(LLAMA_CPP, wish(SMALL, "llama.cpp", "local"))
    spec = EndpointSpec(recipe.variant, "llama.cpp", recipe=recipe, member="mbr-1")
    endpoint: Any = Resource("ept-1", Kind.ENDPOINT, "tnt-1", "prj-1", "chat", spec, None, 0.0, 0.0)
    task = replica_task(endpoint, recipe, "tsk-01abcdefghjkmnpqrstvwxyz00", {}, 5.0)
    assert (task.parent, task.spec.ports, task.spec.member) == ("ept-1", (8000,), "mbr-1")
    assert "8000" in task.spec.command and "{port}" not in task.spec.command
    shared = replace(recipe, port=0)
    port = port_of(shared, task.id)
    assert PORTS[0] <= port < sum(PORTS) and port_of(shared, task.id) == port
    there = replica_task(endpoint, shared, task.id, {}, 5.0)
    assert there.spec.health is not None and there.spec.health.port == port == there.spec.ports[0]
