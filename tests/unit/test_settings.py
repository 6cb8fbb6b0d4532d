"""What a process is started with, where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from usina.core.errors import Invalid
from usina.server.settings import Settings, master_key
from usina.store.database import Database


def test_a_master_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    key = master_key(settings)
    assert len(key) == 32
    assert master_key(settings) == key
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "s3cret", "ab" * 31, "ab" * 33, "\xe9"])
def test_a_file_that_is_not_a_key_is_refused_and_not_shown(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(Invalid) as caught:
        master_key(Settings(data_dir=tmp_path, master_key_file=file))
    assert caught.value.field == "master-key-file"
    assert "s3cret" not in caught.value.message


def test_a_key_cannot_be_made_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        master_key(Settings(data_dir=tmp_path, master_key_file=tmp_path / "nowhere" / "key"))
    assert caught.value.field == "master-key-file"


@pytest.mark.parametrize("url", ["mysql://ana:s3cret@db/usina", "ana:s3cret@db/usina", ""])
def test_a_database_we_do_not_know_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Database(url)
    assert caught.value.field == "database"
    assert "s3cret" not in caught.value.message
