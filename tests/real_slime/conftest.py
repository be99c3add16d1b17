"""slime's own job on a CPU: skipped unless SLIME_DIR and MEGATRON_DIR name their sources.

    make test-slime SLIME_DIR=/path/to/slime MEGATRON_DIR=/path/to/Megatron-LM

docs/SLIME_VERSIONS.md says which commits go together, how long it takes, and what was run.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slime_job import MANUAL, ROOT, SCRIPT, VENV, Job, Workplace, arguments_for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "tests" / "real_slime"):
            item.add_marker(pytest.mark.real_slime)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Where the jobs run: copies, so that nothing is written into the folders that the variables name."""
    slime, megatron = (Path(os.environ.get(name) or "-") for name in ("SLIME_DIR", "MEGATRON_DIR"))
    if not (slime / "train.py").is_file() or not (megatron / "megatron").is_dir():
        pytest.skip("set SLIME_DIR and MEGATRON_DIR to the folders of slime and Megatron-LM")
    reads_old_name = "args.sglang_dp_size = args.sglang_data_parallel_size"
    if reads_old_name in (slime / "slime" / "backends" / "sglang_utils" / "arguments.py").read_text():
        pytest.skip("this slime needs an older SGLang than 0.5.15, which is what is installed here")
    if not (VENV / ".slime-installed").is_file():
        pytest.skip(f"slime's packages are not in {VENV.name}: `make test-slime` installs them")
    temporary = Path(tempfile.mkdtemp(prefix="slime-"))
    try:
        made = Workplace(tmp_path_factory.mktemp("real"), temporary, slime, megatron)
        yield made
        made.stop_session()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture(scope="session")
def retriever(workplace: Workplace) -> Iterator[str]:
    with workplace.retriever() as url:
        yield url


@pytest.fixture(scope="session", params=MANUAL, ids="+".join)
def manual_job(
    request: pytest.FixtureRequest, workplace: Workplace, retriever: str, tmp_path_factory: pytest.TempPathFactory
) -> Job:
    """A job by the training script, in both API modes: with TensorBoard, and a proxy that answers nothing."""
    folder = tmp_path_factory.mktemp(request.param[0])
    done = workplace.run(
        SCRIPT,
        *arguments_for(folder),
        **workplace.variables_of(request.param),
        NUM_ROLLOUT="2",
        RETRIEVAL_SERVER_URL=retriever,
        USE_TENSORBOARD="1",
        TENSORBOARD_DIR=str(folder / "curves"),
        RUN_NAME="my-run",
        http_proxy="http://127.0.0.1:9",  # router and engines, at the node's own address, must need no proxy
    )
    return Job(folder, done.returncode, done.stdout)
