"""The real downloader, a process of its own, against a hub on loopback that HF_ENDPOINT names."""

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from local_dense_retriever import download

REPOSITORY = Path(__file__).parents[2]
INDEX_FILE = "e5_Flat.index/e5_Flat.index"
CORPUS = b"".join(b'{"id": "%d", "contents": "passage number %d"}\n' % (row, row * 7919) for row in range(60_000))
INDEX = random.Random(0).randbytes(5_000_000)
PACKED = gzip.compress(CORPUS[:1_000_000]) + gzip.compress(CORPUS[1_000_000:])  # two members are one file too
SETS = {
    "PeterJinGo/wiki-18-corpus": {"README.md": b"about", "wiki-18.jsonl.gz": PACKED},
    "PeterJinGo/wiki-18-e5-index": {"part_ab": INDEX[3_000_000:], "part_aa": INDEX[:3_000_000], "README.md": b"about"},
    "me/other": {"part_aa": INDEX[:1_000_000]},
}


class Hub(ThreadingHTTPServer):
    """The two calls of the hub's API that are used. `cut_after` bytes of a file the connection breaks."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sets = {name: dict(files) for name, files in SETS.items()}
        self.wrong_sums: set[str] = set()
        self.cut_after: int | None = None
        self.block_s = 0.0  # waited after each 64 KB
        self.asked: list[tuple[str, int]] = []  # file, first byte
        self.keys: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.keys.add(self.headers.get("Authorization"))
        parts = self.path.split("/")
        if self.path.startswith("/api/datasets/"):
            self._list("/".join(parts[3:5]))
        else:
            self._send("/".join(parts[2:4]), parts[-1])

    def _list(self, name: str) -> None:
        if name not in self.server.sets:
            self.send_error(404)
            return
        entries = []
        for path, data in self.server.sets[name].items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
            if len(data) > 100:  # kept in LFS
                salt = b"?" if path in self.server.wrong_sums else b""
                entry["lfs"] = {"oid": hashlib.sha256(data + salt).hexdigest(), "size": len(data), "pointerSize": 130}
            entries.append(entry)
        body = json.dumps(entries).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send(self, name: str, path: str) -> None:
        data = self.server.sets[name][path]
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append((path, start))
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = len(data) if self.server.cut_after is None else min(len(data), start + self.server.cut_after)
        try:
            for offset in range(start, end, 65536):
                self.wfile.write(data[offset : min(offset + 65536, end)])
                time.sleep(self.server.block_s)
        except OSError:  # the client was killed
            pass
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def command(folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "local_dense_retriever/download.py", "--save_path", str(folder), *flags]


def environment(hub: Hub, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "HF_TOKEN": "",
        "HF_ENDPOINT": hub.url,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **more,
    }


def run(hub: Hub, folder: Path, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *flags),
        cwd=REPOSITORY,
        env=environment(hub, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_complete(folder: Path) -> None:
    found = files(folder)
    assert list(json.loads(found.pop("download.json"))) == ["wiki-18.jsonl", "e5_Flat.index"]
    assert found == {INDEX_FILE: INDEX, "wiki-18.jsonl": CORPUS}


def check(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """What `start_server.sh --check` says."""
    return subprocess.run(
        ["local_dense_retriever/start_server.sh", "--check", *flags],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "INDEX_PATH": str(folder / "e5_Flat.index"),
            "CORPUS_PATH": str(folder / "wiki-18.jsonl"),
        },
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def most_on_disk(folder: Path) -> Iterator[list[int]]:
    """Grows by the folder's size, looked at all the time."""
    sizes, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            total = 0
            for path in folder.rglob("*"):
                try:
                    total += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:  # renamed this moment
                    pass
            sizes.append(total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        stop.set()
        thread.join()


def test_both_files_are_whole_and_never_more_is_on_the_disk_than_in_the_end(hub: Hub, tmp_path: Path) -> None:
    hub.block_s = 0.005
    folder = tmp_path / "new" / "folder"
    with most_on_disk(folder) as sizes:
        done = run(hub, folder)
    assert (done.returncode, "are complete" in done.stdout) == (0, True), done.stderr
    assert_complete(folder)
    assert len(set(sizes)) > 20  # looked at often enough to mean something
    assert max(sizes) <= 1.1 * (len(INDEX) + len(CORPUS))
    assert "e5_Flat.index: 100%" in done.stderr


def test_a_complete_folder_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    assert run(hub, tmp_path).returncode == 0
    asked = len(hub.asked)
    assert run(hub, tmp_path).returncode == 0
    assert len(hub.asked) == asked


def test_another_repo_id_is_honoured(hub: Hub, tmp_path: Path) -> None:
    assert run(hub, tmp_path, "--repo_id", "me/other").returncode == 0
    assert (tmp_path / INDEX_FILE).read_bytes() == INDEX[:1_000_000]


def test_broken_connections_are_continued_where_they_broke(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after = 1_600_000
    done = run(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_complete(tmp_path)
    assert [start for path, start in hub.asked if path == "part_aa"] == [0, 1_600_000]


@pytest.mark.slow
def test_killed_at_random_moments_it_continues_after_the_bytes_it_has(hub: Hub, tmp_path: Path) -> None:
    hub.block_s = 0.02  # 1.7 s for both files
    moment, kills = random.Random(0), 10
    for _ in range(kills):
        asked = len(hub.asked)
        with subprocess.Popen(
            command(tmp_path),
            cwd=REPOSITORY,
            env=environment(hub),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while len(hub.asked) == asked and process.poll() is None:
                time.sleep(0.01)
            time.sleep(moment.uniform(0, 0.3))
            process.kill()
    hub.block_s = 0
    done = run(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert_complete(tmp_path)
    starts = [start for path, start in hub.asked if path == "part_aa"]
    assert len(hub.asked) > kills / 2 and starts == sorted(starts) and starts[-1] > 0


@pytest.mark.parametrize("wrong", ["part_ab", "wiki-18.jsonl.gz"])
def test_a_wrong_checksum_is_reported_and_only_that_file_is_fetched_again(hub: Hub, tmp_path: Path, wrong: str) -> None:
    hub.wrong_sums = {wrong}
    done = run(hub, tmp_path)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and wrong in error and "arrived damaged (its SHA-256 is wrong)" in error
    hub.wrong_sums, hub.asked = set(), []
    assert run(hub, tmp_path).returncode == 0
    assert_complete(tmp_path)
    assert "part_aa" not in [path for path, _ in hub.asked] or wrong != "part_ab"


def test_partial_files_with_wrong_bytes_are_noticed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "wiki-18.jsonl.gz.partial").write_bytes(b"x" * 1000)
    (tmp_path / "e5_Flat.index").mkdir()
    (tmp_path / f"{INDEX_FILE}.partial").write_bytes(b"x" * 1000)
    assert run(hub, tmp_path).returncode == 0
    assert_complete(tmp_path)


def test_a_file_that_cannot_be_unpacked_is_reported_in_one_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.sets["PeterJinGo/wiki-18-corpus"]["wiki-18.jsonl.gz"] = PACKED[:-100]
    done = run(hub, tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "cannot be unpacked" in done.stderr
    hub.sets["PeterJinGo/wiki-18-corpus"]["wiki-18.jsonl.gz"] = PACKED
    assert run(hub, tmp_path).returncode == 0
    assert_complete(tmp_path)


def test_an_unknown_data_set_names_the_remedy(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "--corpus_repo_id", "me/none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "answers 404: check the name of the data set" in done.stderr


def test_a_set_without_the_files_names_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path, "--repo_id", "PeterJinGo/wiki-18-corpus")
    assert "has no file part_…: give another --repo_id" in done.stderr


def test_the_key_of_the_hub_is_sent(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path, "--repo_id", "me/other", HF_TOKEN="secret")
    assert hub.keys == {"Bearer secret"}


def test_an_unreachable_hub_is_reported_in_one_sentence_after_a_few_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(download.time, "sleep", waited.append)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert download.main(["--save_path", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "check the network and HF_ENDPOINT" in error
    assert waited == [1, 2, 4, 8, 16]


# ---- The specification's own commands --------------------------------------------------------------------------------

# As README of the specification prints them.
JOIN_AND_UNPACK = """
cat part_* > e5_Flat.index
rm part_*
gzip -d wiki-18.jsonl.gz
"""


def join_and_unpack(folder: Path) -> None:
    subprocess.run(["bash", "-c", JOIN_AND_UNPACK], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)


def test_joining_and_unpacking_as_the_original_download_needs_it_does_no_harm(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, tmp_path)
    assert "already joined and unpacked" in done.stdout
    join_and_unpack(tmp_path)
    assert_complete(tmp_path)
    checked = check(tmp_path, "--verify")
    assert checked.returncode == 0, checked.stderr
    asked = len(hub.asked)
    assert run(hub, tmp_path).returncode == 0
    assert len(hub.asked) == asked


def test_the_same_while_the_download_is_unfinished_does_no_harm_either(hub: Hub, tmp_path: Path) -> None:
    hub.wrong_sums = {"wiki-18.jsonl.gz"}  # stops it before the index
    assert run(hub, tmp_path).returncode == 1
    join_and_unpack(tmp_path)
    assert check(tmp_path).returncode == 1
    hub.wrong_sums = set()
    assert run(hub, tmp_path).returncode == 0
    assert_complete(tmp_path)


def test_an_index_joined_by_hand_is_checked_and_kept(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "e5_Flat.index").write_bytes(INDEX)
    (tmp_path / "wiki-18.jsonl").write_bytes(CORPUS)
    assert run(hub, tmp_path).returncode == 0
    assert hub.asked == []
    assert (tmp_path / INDEX_FILE).read_bytes() == INDEX


@pytest.mark.parametrize(
    ("name", "kept", "fetched"),
    [
        (INDEX_FILE, 0, [("part_aa", 0), ("part_ab", 0)]),
        (INDEX_FILE, 4_000_000, [("part_ab", 1_000_000)]),
        ("wiki-18.jsonl", 0, [("wiki-18.jsonl.gz", 0)]),
        ("wiki-18.jsonl", 1_000_000, [("wiki-18.jsonl.gz", 0)]),
    ],
)
def test_a_truncated_file_is_noticed_and_only_what_is_missing_is_fetched(
    hub: Hub, tmp_path: Path, name: str, kept: int, fetched: list[tuple[str, int]]
) -> None:
    run(hub, tmp_path)
    os.truncate(tmp_path / name, kept)
    checked = check(tmp_path)
    assert checked.returncode == 1 and checked.stderr.count("\n") == 1
    assert f"{tmp_path / name} has {kept} bytes and should have" in checked.stderr
    assert "run download.py again" in checked.stderr
    hub.asked = []
    assert run(hub, tmp_path).returncode == 0
    assert hub.asked == fetched
    assert_complete(tmp_path)


def test_verify_finds_a_flipped_byte_and_fetches_its_part_alone(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path)
    with (tmp_path / INDEX_FILE).open("rb+") as file:
        file.write(bytes([INDEX[0] ^ 1]))
    assert check(tmp_path).returncode == 0  # by size
    checked = check(tmp_path, "--verify")
    assert checked.returncode == 1 and "is damaged between byte 0 and 3000000" in checked.stderr
    hub.asked = []
    assert run(hub, tmp_path, "--verify").returncode == 0
    assert hub.asked == [("part_aa", 0)]
    assert_complete(tmp_path)


# ---- Two at once, and bad settings -----------------------------------------------------------------------------------


def test_two_downloads_into_one_folder_do_not_mix(hub: Hub, tmp_path: Path) -> None:
    hub.block_s = 0.02
    both = [
        subprocess.Popen(
            command(tmp_path), cwd=REPOSITORY, env=environment(hub), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=60)[1].decode() for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert any("another download.py is writing to" in error for error in errors)
    assert_complete(tmp_path)


def test_a_token_with_the_line_end_of_windows_is_sent_without_it(hub: Hub, tmp_path: Path) -> None:
    assert run(hub, tmp_path, "--repo_id", "me/other", HF_TOKEN="secret\r\n").returncode == 0
    assert hub.keys == {"Bearer secret"}


@pytest.mark.parametrize("token", ["hf_sec\rret", "hf_sec ret", "hf_sécret", "hf_sec\nret"])
def test_a_token_that_cannot_be_sent_is_refused_at_once_and_not_printed(hub: Hub, tmp_path: Path, token: str) -> None:
    began = time.monotonic()
    done = run(hub, tmp_path, HF_TOKEN=token)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "HF_TOKEN has a space" in done.stderr and "hf_" not in done.stderr
    assert time.monotonic() - began < 10 and hub.keys == set()


@pytest.mark.parametrize("endpoint", ["huggingface.co", "https://[", "http://a b"])
def test_an_endpoint_that_is_not_a_url_is_reported_in_one_sentence(hub: Hub, tmp_path: Path, endpoint: str) -> None:
    done = run(hub, tmp_path, HF_ENDPOINT=endpoint)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "HF_ENDPOINT" in done.stderr
