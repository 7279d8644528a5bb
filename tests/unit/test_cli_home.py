"""The data folder of `waybill up`, and the facts in it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.console import CommandError
from services.cli.facts import Credentials, Facts, ProcessIds, read_facts
from services.cli.main import app
from services.local.announcement import announcement
from services.local.home import Home, hold


@pytest.fixture
def facts(tmp_path: Path) -> Facts:
    return Facts(
        api_url="http://127.0.0.1:8000",
        docs_url="http://127.0.0.1:8000/docs",
        database_url="postgresql://...",
        redis_url="redis://...",
        data_dir=tmp_path,
        environment="development",
        users=[Credentials(email="buyer@waybill.example", password="secret-word", full_name="Bea Buyer")],
        product_ids=[7],
        pids=ProcessIds(api=42, workers=[43, 44]),
    )


def test_facts_are_read_as_they_were_written_and_only_by_their_owner(facts: Facts, tmp_path: Path) -> None:
    facts.write()
    assert read_facts(tmp_path) == facts
    assert (tmp_path / "waybill.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["waybill.json"]


def test_a_reader_never_sees_half_of_the_facts(facts: Facts, tmp_path: Path) -> None:
    facts.write()
    with (tmp_path / "waybill.json").open() as before:
        facts.api_url = "http://127.0.0.1:9000"
        facts.write()
        assert Facts.model_validate_json(before.read()).api_url == "http://127.0.0.1:8000"


def test_there_are_no_facts_if_nothing_has_run(tmp_path: Path) -> None:
    assert read_facts(tmp_path / "nowhere") is None


def test_facts_from_another_program_are_refused(tmp_path: Path) -> None:
    (tmp_path / "waybill.json").write_text('{"api_url": 3}')
    with pytest.raises(CommandError, match="was not written by `waybill up`"):
        read_facts(tmp_path)


@pytest.mark.parametrize("damaged", ["", "short", "\0" * 64, "ä" * 64], ids=["empty", "short", "zeros", "garbled"])
def test_a_damaged_secret_key_is_replaced_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damaged: str
) -> None:
    with hold(tmp_path / "data") as home:
        before = home.secret_key()
        assert capsys.readouterr().out == ""
        (home.path / "secret_key").write_text(damaged)
        made = home.secret_key()
        assert made != before
        assert len(made) == len(before)
        assert home.secret_key() == made
    said = capsys.readouterr().out
    assert said == f"{home.path / 'secret_key'} was damaged and has been replaced: everyone has to sign in again\n"


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files are read from /proc")
def test_facts_are_on_the_disk_before_they_take_the_place_of_the_old_ones(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut cannot be tested here, but the order of the calls that guard against it can."""
    calls: list[str] = []
    sync, rename = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def watched_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_rename)
    facts.write()
    assert calls == ["sync waybill.json.new", "rename to waybill.json", f"sync {tmp_path.name}"]


def test_facts_that_do_not_fit_on_the_disk_leave_the_old_ones_and_no_draft(facts: Facts, tmp_path: Path) -> None:
    facts.write()
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from services.cli.facts import read_facts\n"
        "facts = read_facts(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "facts.api_url = 'http://127.0.0.1:9000'\n"
        "facts.write()\n"
    )
    wrote = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert "File too large" in wrote.stderr
    assert read_facts(tmp_path) == facts
    assert [path.name for path in tmp_path.iterdir()] == ["waybill.json"]


def test_a_writer_that_is_killed_never_leaves_half_of_the_facts(facts: Facts, tmp_path: Path) -> None:
    # Long enough for a kill to hit it in the middle.
    facts.product_ids = list(range(200_000))
    facts.write()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from services.cli.facts import read_facts\n"
        "facts = read_facts(Path(sys.argv[1]))\n"
        "print(flush=True)\n"
        "while True:\n"
        "    facts.write()\n"
    )
    for number in range(6):
        with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(0.01 * number)
            writer.kill()
        assert read_facts(tmp_path) == facts


def test_the_secret_key_is_kept(tmp_path: Path) -> None:
    with hold(tmp_path / "data") as home:
        key = home.secret_key()
    with hold(tmp_path / "data") as home:
        assert home.secret_key() == key
    assert len(key) >= 32
    assert (tmp_path / "data" / "secret_key").stat().st_mode & 0o777 == 0o600


def test_only_one_process_at_a_time_holds_the_folder(tmp_path: Path) -> None:
    refused = pytest.raises(CommandError, match=r"in use by another `waybill up` \(process [0-9]+\)")
    with hold(tmp_path), refused, hold(tmp_path):
        pass
    with hold(tmp_path) as home:
        assert home.path == tmp_path


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_other_files_is_left_as_it_is(tmp_path: Path) -> None:
    precious = tmp_path / "my project"
    (precious / "logs").mkdir(parents=True)
    for name in ("thesis.tex", "lock", "logs/mine.log"):
        (precious / name).write_text("mine")
    precious.chmod(0o755)
    before = contents(precious)
    refused = pytest.raises(CommandError, match=r"it contains other files \(thesis\.tex, lock, logs\)")
    with refused, hold(precious):
        pass
    assert CliRunner().invoke(app, ["clean-data", "--data-dir", str(precious)]).exit_code == 1
    assert contents(precious) == before
    assert precious.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("files", [(), ("thesis.tex",)])
def test_the_working_folder_is_refused_and_a_better_one_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    folder = tmp_path / "my project"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    monkeypatch.chdir(folder)
    with pytest.raises(CommandError) as refused, hold(Path()):
        pass
    assert (files[0] if files else "you are working in it") in str(refused.value)
    assert f"for example --data-dir '{folder}/.waybill'" in str(refused.value)
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)


def test_a_shared_folder_is_refused_even_when_it_is_empty(tmp_path: Path) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    refused = pytest.raises(CommandError, match=r"all users .* share it.* --data-dir .*/tmp/\.waybill$")
    with refused, hold(shared):
        pass
    assert not list(shared.iterdir())


def test_an_empty_folder_is_taken_and_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    for _ in range(2):
        with hold(tmp_path / "data") as home:
            home.secret_key()
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o755


def test_a_folder_that_is_created_is_accessible_only_to_its_owner(tmp_path: Path) -> None:
    with hold(tmp_path / "new" / "data") as home:
        assert home.path.stat().st_mode & 0o777 == 0o700
        assert "waybill up" in (home.path / "waybill.marker").read_text()


def test_a_folder_from_before_the_marker_is_known_by_its_facts_unless_it_holds_more(
    facts: Facts, tmp_path: Path
) -> None:
    facts.write()
    (tmp_path / "logs").mkdir()
    (tmp_path / "thesis.tex").touch()
    refused = pytest.raises(CommandError, match=r"it contains other files \(thesis\.tex, ")
    with refused, hold(tmp_path):
        pass
    (tmp_path / "thesis.tex").unlink()
    with hold(tmp_path) as home:
        assert (home.path / "waybill.marker").is_file()


def test_a_file_is_not_a_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"cannot use .* as the data folder"), hold(tmp_path / "file"):
        pass


def test_the_announcement_can_be_copied(facts: Facts, tmp_path: Path) -> None:
    lines = list(announcement(facts, Home(tmp_path)))
    (sign_in,) = [line for line in lines if "TOKEN=$(" in line]
    (order,) = [line for line in lines if "Idempotency-Key" in line]
    assert "http://127.0.0.1:8000/v1/token -d username=buyer@waybill.example -d password=secret-word" in sign_in
    assert 'http://127.0.0.1:8000/v1/orders -H "Authorization: Bearer $TOKEN"' in order
    assert '{"items":[{"product_id":7,"quantity":2}]}' in order


def test_the_announcement_begins_with_the_console_and_who_may_sign_in_to_it(facts: Facts, tmp_path: Path) -> None:
    operator = Credentials(email="olga@waybill.example", password="her-word", full_name="Olga")
    there = facts.model_copy(update={"console_url": "http://127.0.0.1:8000/console", "operator": operator})
    first, second = [line.split() for line in announcement(there, Home(tmp_path)) if "  " in line][:2]
    assert first == ["console", "http://127.0.0.1:8000/console"]
    assert second[-3:] == ["olga@waybill.example", "password", "her-word"]


def test_without_demo_users_the_announcement_says_how_to_make_an_admin(facts: Facts, tmp_path: Path) -> None:
    facts.users = []
    assert any("waybill users create EMAIL --role admin" in line for line in announcement(facts, Home(tmp_path)))


def test_clean_data_removes_a_data_folder(tmp_path: Path) -> None:
    with hold(tmp_path / "data") as home:
        home.secret_key()
    cleaned = CliRunner().invoke(app, ["clean-data", "--data-dir", str(tmp_path / "data")])
    assert cleaned.exit_code == 0
    assert not (tmp_path / "data").exists()


def test_clean_data_removes_all_that_a_run_writes_and_spares_the_rest(facts: Facts, tmp_path: Path) -> None:
    with hold(tmp_path / "data") as home:
        home.secret_key()
        facts.data_dir = home.path
        facts.write()
        for server in ("postgres", "redis"):
            (home.path / server / "cluster").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "data" / "postgres").rename(elsewhere)
    (tmp_path / "data" / "postgres").symlink_to(elsewhere)
    (tmp_path / "data" / "thesis.tex").touch()
    cleaned = CliRunner().invoke(app, ["clean-data", "--data-dir", str(tmp_path / "data")])
    assert cleaned.exit_code == 0, cleaned.output
    assert "the folder is kept" in cleaned.output
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["thesis.tex"]
    assert (elsewhere / "cluster").is_dir()


def test_clean_data_removes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    refused = CliRunner().invoke(app, ["clean-data", "--data-dir", str(tmp_path / "precious")])
    assert refused.exit_code == 1
    assert (tmp_path / "precious").exists()


def test_clean_data_does_not_touch_what_is_in_use(tmp_path: Path) -> None:
    with hold(tmp_path / "data") as home:
        refused = CliRunner().invoke(app, ["clean-data", "--data-dir", str(tmp_path / "data")])
        assert refused.exit_code == 1
        assert "in use by another" in refused.output
        assert home.logs.exists()
