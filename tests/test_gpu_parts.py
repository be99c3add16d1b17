"""What is carried to a machine with a GPU arrives whole, or the part that did not is named."""

from pathlib import Path

import pytest

from benchmarks.gpu import cut, joined, main


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    packed = tmp_path / "packed"
    packed.write_bytes(bytes(range(256)) * 4)
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "part-09").write_bytes(b"of an earlier time")
    assert cut(packed, folder, part_bytes=300) == 4
    return folder


def test_parts_come_together_as_they_were_cut(parts: Path) -> None:
    assert joined(parts).read() == bytes(range(256)) * 4
    assert max(part.stat().st_size for part in parts.glob("part-*")) == 300
    assert not (parts / "part-09").exists()


def test_a_damaged_or_missing_part_is_reported(parts: Path) -> None:
    (parts / "part-02").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="part-02 is missing or damaged"):
        joined(parts)
    (parts / "part-01").unlink()
    with pytest.raises(ValueError, match="part-01 is missing or damaged"):
        joined(parts)


def test_without_a_gpu_the_remedy_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main([]) == 1
    assert "--smoke" in capsys.readouterr().err
