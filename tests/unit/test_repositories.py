"""Names, trees and git ids of model repositories; facts and cards read from files that may be anybody's."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usina.core import git
from usina.core.errors import Invalid, NotFound
from usina.core.model import ModelFacts
from usina.core.repository import (
    Drop,
    DropFolder,
    Entry,
    changed,
    check_model_name,
    check_path,
    check_ref_name,
    is_large,
)
from usina.facades.huggingface import address
from usina.services.models import FileReader, card, catalogue, facts

NAMES = st.from_regex(r"[A-Za-z0-9_]{1,8}(/[A-Za-z0-9_]{1,8}){0,3}", fullmatch=True)


class TestNames:
    @pytest.mark.parametrize("name", ["a/b", "Org_1/Model-7B.v2", "x/" + "y" * 96, "_a/b_"])
    def test_good(self, name: str) -> None:
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(name)
        assert check_model_name(name) == name

    @pytest.mark.parametrize(
        "name",
        ["", "a", "a/b/c", "/b", "a/", "a/b\n", "a/.b", "a/b.", "-a/b", "a/b-", "a--b/c", "a/b..c", "a/b.git", "a/é",
         "a/b c", "../b", "a/" + "y" * 97, "a/b\0"],
    )  # fmt: skip
    def test_bad(self, name: str) -> None:
        with pytest.raises(Invalid):
            check_model_name(name)

    @given(st.text(max_size=40))
    def test_a_path_that_passes_stays_below(self, path: str) -> None:
        try:
            check_path(path)
        except Invalid:
            return
        assert os.path.normpath(path) == path
        assert not path.startswith(("/", ".."))
        assert "\0" not in path

    @pytest.mark.parametrize("name", ["main", "v1.0", "feature/x", "a"])
    def test_good_refs(self, name: str) -> None:
        assert check_ref_name(name) == name

    @pytest.mark.parametrize("name", ["", "a b", "a..b", "/a", "a/", "refs/heads/x", "0" * 40, "x.lock", "-x", "a//b"])
    def test_bad_refs(self, name: str) -> None:
        with pytest.raises(Invalid):
            check_ref_name(name)

    def test_what_is_large(self) -> None:
        assert is_large("model.safetensors", 1)
        assert is_large("sub/x.GGUF", 1)
        assert is_large("notes.txt", 10 << 20)
        assert not is_large("tokenizer.json", 1 << 20)


def entry(path: str, content: bytes) -> Entry:
    return Entry(path, len(content), "0" * 64, git.blob_id(content))


class TestTrees:
    @given(st.dictionaries(NAMES, st.binary(max_size=8), max_size=8), st.data())
    def test_changes_do_what_they_say(self, files: dict[str, bytes], data: Any) -> None:
        try:
            tree = changed((), [entry(path, content) for path, content in files.items()])
        except Invalid:
            return  # one of them would be a folder of another
        assert [one.path for one in tree] == sorted(files)
        if files:
            gone = data.draw(st.sampled_from(sorted(files)))
            assert [one.path for one in changed(tree, [Drop(gone)])] == sorted(files.keys() - {gone})
            top = gone.split("/")[0]
            left = changed(tree, [DropFolder(top)])
            assert not [one for one in left if one.path.startswith(f"{top}/")]

    def test_what_is_not_there_cannot_go(self) -> None:
        with pytest.raises(NotFound):
            changed((), [Drop("x")])

    def test_no_file_is_a_folder(self) -> None:
        with pytest.raises(Invalid):
            changed((entry("a", b""),), [entry("a/b", b"")])

    @pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
    def test_ids_are_gits_own(self, tmp_path: Path) -> None:
        files = {"a.txt": b"1", "a/b.txt": b"2", "a.b/c": b"3", "z/y/x": b"", "a-b": b"4", "README.md": b"# hi\n"}
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        when = {"GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}
        who = {f"GIT_{role}_{what}": "ada" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = {**os.environ, **when, **who, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

        def run(*words: str) -> str:
            done = subprocess.run(["git", *words], cwd=tmp_path, env=environment, capture_output=True, check=True)
            return done.stdout.decode().strip()

        run("init", "-q")
        run("add", ".")
        tree = git.tree_ids([entry(path, content) for path, content in files.items()])
        assert tree[""] == run("write-tree")
        assert git.commit_id(tree[""], None, "ada", 1700000000, "one\n") == run("commit-tree", tree[""], "-m", "one")


class TestAddresses:
    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            (b"/api/models", ("models", "", "", "")),
            (b"/api/models/a/b", ("info", "a/b", "", "")),
            (b"/api/models/a/b/revision/refs%2Fpr%2F1", ("revision", "a/b", "refs/pr/1", "")),
            (b"/api/models/a/b/tree/main/x%2Fy", ("tree", "a/b", "main", "x/y")),
            (b"/a/b/resolve/v1/x/y%20z", ("resolve", "a/b", "v1", "x/y z")),
            (b"/a/b.git/info/lfs/objects/batch", ("lfs-batch", "a/b", "", "")),
            (b"/a/b.git/lfs/00", ("lfs-object", "a/b", "", "00")),
            (b"/api/repos/create", ("repos/create", "", "", "")),
        ],
    )
    def test_read(self, path: bytes, expected: tuple[str, ...]) -> None:
        found = address.read(path)
        assert (found.verb, found.name, found.revision, found.path) == expected

    @given(st.binary(max_size=60).filter(lambda raw: raw.isascii()))
    def test_anything_is_an_address_or_told(self, raw: bytes) -> None:
        try:
            address.read(b"/" + raw)
        except (Invalid, NotFound):
            return


def safetensors(path: Path, **tensors: tuple[str, list[int]]) -> Path:
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


class TestFacts:
    def test_transformers(self, tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text(
            '{"model_type": "mistral", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,'
            '"num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512, "architectures": ["X"]}'
        )
        files = {
            "config.json": config,
            "model-1.safetensors": safetensors(tmp_path / "1", a=("BF16", [100, 64]), b=("F32", [64])),
            "model-2.safetensors": safetensors(tmp_path / "2", c=("BF16", [64, 64])),
            "consolidated.safetensors": safetensors(tmp_path / "3", c=("BF16", [1000, 1000])),  # the same again
        }
        assert facts.read(files) == ModelFacts("mistral", 6400 + 64 + 4096, "bf16", 2, 8, 2, 8, 64, 100, 512, False)

    def test_embeddings_and_quantized(self, tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
        assert facts.read({"config.json": config}).embeddings
        config.write_text('{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}')
        weights = safetensors(tmp_path / "w", a=("I32", [100, 64]), b=("F16", [64]))
        found = facts.read({"config.json": config, "model.safetensors": weights})
        assert (found.dtype, found.parameters) == ("awq", 0)  # packed numbers are no parameters

    def test_gguf(self, tmp_path: Path) -> None:
        import gguf
        import numpy as np

        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(3)
        writer.add_head_count(4)
        writer.add_head_count_kv([1, 2, 2])
        writer.add_embedding_length(32)
        writer.add_context_length(2048)
        writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_Q8_0))
        writer.add_token_list([f"t{number}" for number in range(5000)])
        writer.add_token_scores([0.5] * 5000)
        writer.add_tensor("token_embd.weight", np.zeros((10, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert facts.read({"m.gguf": path}) == ModelFacts("llama", 320, "q8_0", 3, 4, 2, 8, 32, 5000, 2048, False)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"GGUF",
            b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60),
            # an array of 2**60 small numbers, and one of strings
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 1 << 60),
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 60),
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 1 << 60),
        ],
    )
    async def test_hostile_gguf(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        assert await FileReader().facts({"m.gguf": path}) == ModelFacts()

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff" * 8, struct.pack("<Q", 1 << 40), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b"[" * 9],
    )
    async def test_hostile_safetensors(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "m"
        path.write_bytes(content)
        assert await FileReader().facts({"m.safetensors": path}) == ModelFacts()


class TestCards:
    def test_read(self) -> None:
        found = card.read(
            "---\nlicense: apache-2.0\nlanguage:\n- pt\n- en\ntags: [a, b]\npipeline_tag: text-generation\n"
            "library_name: transformers\nbase_model: x/y\ndate: 2024-01-02\n---\n# Hi\n"
        )
        assert (found.licence, found.languages, found.tags) == ("apache-2.0", ("pt", "en"), ("a", "b"))
        assert (found.task, found.library, found.base_models) == ("text-generation", "transformers", ("x/y",))
        assert found.data["date"] == "2024-01-02"
        json.dumps(found.data)

    @pytest.mark.parametrize("text", ["", "# Hi", "---\n", "---\n---\n", "text\n---\nlicense: x\n---\n"])
    def test_none(self, text: str) -> None:
        assert card.read(text).licence == ""

    def test_other_licences_have_names(self) -> None:
        assert card.read("---\nlicense: other\nlicense_name: our-own\n---\n").licence == "our-own"

    @pytest.mark.parametrize(
        "front",
        ["a: [", "a: &x [1]\nb: *x", "- list", "!!python/object/apply:os.system ['x']", "a: " + "[" * 5000, "a: b: c",
         "x" * 200_000 + ": 1"],
    )  # fmt: skip
    def test_hostile(self, front: str) -> None:
        with pytest.raises(Invalid) as refused:
            card.read(f"---\n{front}\n---\n")
        assert refused.value.field == "README.md"

    @given(st.text(max_size=200))
    def test_any_text_is_a_card_or_told(self, text: str) -> None:
        try:
            json.dumps(card.read(f"---\n{text}\n---\n").data)
        except Invalid:
            return


def test_the_catalogue_is_well_formed() -> None:
    found = catalogue.entries()
    assert len({entry.name for entry in found}) == len(found) >= 15
    for one in found:
        if one.hub:
            check_model_name(one.hub)
        assert all(re.fullmatch(r"[a-z]{2}", language) for language in one.languages)
        assert one.about.endswith(".")
        assert one.memory == {} or one.memory["bf16"] == one.parameters * 2
