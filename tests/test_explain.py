"""Real messages of the stack, and what is said about them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_launcher import explain

LINES = {
    "disk-full": [
        "OSError: [Errno 28] No space left on device",
        "RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 4096 vs 3990",
    ],
    "gpu-memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total",
    ],
    "host-memory": [
        "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
        "RuntimeError: One of the subprocesses has abruptly died during map operation.",
    ],
    "gated-model": [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1)",
        "OSError: You are trying to access a gated repo.",
    ],
    "unknown-model": [
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name'",
        "OSError: a/b is not a local folder and is not a valid model identifier listed on",
    ],
    "offline": [
        "OSError: We couldn't connect to the hub to load the files",
    ],
    "hf-transfer": [
        "ValueError: Fast download using 'hf_transfer' is enabled but 'hf_transfer' package is not available",
    ],
    "weights-format": [
        "ValueError: The checkpoint you are trying to load has model type `x` but Transformers does not "
        "recognize this architecture.",
    ],
    "checkpoint-world": [
        "deepspeed.runtime.zero.utils.ZeRORuntimeException: The checkpoint being loaded used a DP world size of 2",
    ],
    "checkpoint-broken": [
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
        "ValueError: Can't find a valid checkpoint at /s/r/output/checkpoint-5",
    ],
    "output-dir": [
        "ValueError: Output directory already exists and is not empty. Please set `overwrite_output_dir`.",
    ],
    "storage-not-shared": [
        "RuntimeError: Unable to set up cluster storage with the following settings:",
    ],
    "not-utf8-or-json": [
        "tarfile.ReadError: unexpected end of data",
        "datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset",
    ],
    "unknown-dataset": [
        "ValueError: Undefined dataset nope in dataset_info.json.",
    ],
    "dataset": [
        "KeyError: 'text'",
        "RuntimeError: Cannot find sufficient samples, consider increasing dataset size.",
        "StopIteration",
    ],
    "template": [
        "ValueError: Template nope does not exist.",
    ],
    "arguments": [
        "ValueError: Some keys are not used by the HfArgumentParser: ['learning_rte']",
        "TypeError: '<=' not supported between instances of 'float' and 'str'",
        "ValueError: cosinee is not a valid SchedulerType, please select one of",
    ],
    "deepspeed-json": [
        "AssertionError: Check batch related parameters. train_batch_size is not equal to",
    ],
    "versions": [
        "ImportError: deepspeed>=0.10.0,<=0.16.9 is required for a normal functioning of this module, "
        "but found deepspeed==0.17.1.",
    ],
    "compiler": [
        "RuntimeError: Error building extension 'deepspeed_shm_comm'",
    ],
    "not-installed": [
        "ModuleNotFoundError: No module named 'deepspeed'",
    ],
    "tracking": [
        "mlflow.exceptions.RestException: UNAUTHENTICATED",
    ],
    "runtime-env": [
        "ray.exceptions.RuntimeEnvSetupError: Failed to set up runtime environment.",
    ],
    "no-cluster": [
        "ConnectionError: Could not find any running Ray instance. Please specify the one to connect to",
    ],
    "never-fits": [
        "ValueError: Cannot schedule: the placement group is infeasible",
    ],
    "cuda-driver": [
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ],
    "token-range": [
        "IndexError: index out of range in self",
    ],
    "gpu-fault": [
        "RuntimeError: CUDA error: an illegal memory access was encountered",
    ],
    "nccl": [
        "torch.distributed.DistBackendError: NCCL communicator was aborted on rank 1.",
        "RuntimeError: [gloo/transport/tcp/pair.cc:534] Connection closed by peer [192.0.2.2]:1234",
    ],
    "worker-lost": [
        "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.",
    ],
    "driver-lost": [
        "Fatal Python error: Segmentation fault",
    ],
}
CAUSES = json.loads(Path(explain.__file__).with_name("data").joinpath("causes.json").read_text())


@pytest.mark.parametrize(("rule", "line"), [(rule, line) for rule, lines in LINES.items() for line in lines])
def test_a_message_is_known(rule: str, line: str) -> None:
    found = explain.explain(["(RayTrainWorker pid=12, ip=10.0.0.1) " + line])
    assert found is not None
    assert (found.rule, found.cause) == (rule, line)
    assert found.means
    assert found.hint


def test_every_entry_is_tried() -> None:
    assert {row["id"] for row in CAUSES} == set(LINES)
    assert {row["retry"] for row in CAUSES} == {"yes", "no", "after-progress"}


LOG = """\
(TorchTrainer pid=55) - (node_id=9b7f, ip=10.0.0.1, pid=11) world_rank=0, local_rank=0, node_rank=0
(TorchTrainer pid=55) - (node_id=9b7f, ip=10.0.0.4, pid=12) world_rank=1, local_rank=1, node_rank=0
\x1b[36m(RayTrainWorker pid=12, ip=10.0.0.4)\x1b[0m Traceback (most recent call last):
ray::_RayTrainWorker__execute.get_next() (pid=12, ip=10.0.0.4, actor_id=8a)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
The above exception was the direct cause of the following exception:
ray.exceptions.RayTaskError(OutOfMemoryError): ray::_Inner.train() (pid=9, ip=10.0.0.1)
RuntimeError: something on the way out
ray.train.base_trainer.TrainingFailedError: The Ray Train run failed. Please inspect the previous error messages
"""


def test_the_innermost_cause_and_where_it_came_from() -> None:
    found = explain.explain(LOG.splitlines())
    assert found is not None
    assert found.cause == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert found.origin == "rank 1 on 10.0.0.4 (pid 12)"
    assert found.retry == "after-progress"
    tail = explain.explain(LOG.splitlines()[2:], {12: 7})
    assert tail is not None
    assert tail.origin == "rank 7 on 10.0.0.4 (pid 12)"


def test_a_known_reason_is_not_hidden_by_the_error_that_wraps_it() -> None:
    lines = [
        "huggingface_hub.errors.GatedRepoError: 401 Client Error.",
        "During handling of the above exception, another exception occurred:",
        "OSError: Failed to load tokenizer.",
    ]
    found = explain.explain(lines)
    assert found is not None
    assert found.rule == "gated-model"


def test_without_a_chain_the_last_error_counts() -> None:
    found = explain.explain(["SomeError: 'a'", "OtherError: b", "done"])
    assert found is not None
    assert (found.cause, found.rule, found.retry) == ("OtherError: b", "unknown", "after-progress")
    assert explain.explain(["all is well: no Error here", ""]) is None


def test_a_line_without_an_exception_can_tell_too() -> None:
    found = explain.explain(["[rank1]:[E1123] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"])
    assert found is not None
    assert found.rule == "nccl"


def stderr_of(program: str, *flags: str) -> list[str]:
    """What a Python program that fails prints."""
    done = subprocess.run([sys.executable, *flags, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done.stderr.splitlines()


PREFIXES = ["", "(RayTrainWorker pid=12, ip=10.0.0.4) ", "\x1b[36m(TorchTrainer pid=55)\x1b[0m ", "[rank1]: "]
RAISED = [
    ("raise DeprecationWarning('`trainer_resources` is deprecated')", "DeprecationWarning: `trainer_resources` is"),
    ("import warnings; warnings.simplefilter('error'); warnings.warn('old', UserWarning)", "UserWarning: old"),
    (
        "import subprocess; subprocess.run(['false'], check=True)",
        "subprocess.CalledProcessError: Command '['false']' returned non-zero exit status 1.",
    ),
    ("class stopped(Exception): pass\nraise stopped('by hand')", "stopped: by hand"),
    ("class Halt(Exception): pass\nraise Halt", "Halt"),
    ("def f():\n  class Halt(Exception): pass\n  raise Halt('here')\nf()", "f.<locals>.Halt: here"),
    ("import queue; queue.Queue().get_nowait()", "_queue.Empty"),
    ("import tarfile; tarfile.open('/dev/null')", "tarfile.ReadError: file could not be opened successfully:"),
    ("raise ValueError('first line\\nsecond line')", "ValueError: first line"),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("program", "cause"), RAISED)
def test_the_cause_is_found_whatever_it_is_called(program: str, cause: str, prefix: str) -> None:
    lines = ["started", *stderr_of(program), "the driver is done"]
    found = explain.explain([prefix + line for line in lines])
    assert found is not None
    assert found.cause.startswith(cause)


def test_the_driver_of_a_newer_ray() -> None:
    found = explain.explain(stderr_of(RAISED[0][0]))
    assert found is not None
    assert (found.rule, found.retry) == ("versions", "no")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_chain_of_odd_names_gives_the_innermost(prefix: str) -> None:
    classes = "class Inner(Exception): pass\nclass Outer(Exception): pass\n"
    body = "try:\n  raise Inner('why')\nexcept Inner as error:\n  raise Outer('so')"
    for link in (" from error", ""):
        found = explain.explain([prefix + line for line in stderr_of(classes + body + link)])
        assert found is not None
        assert found.cause.endswith("Inner: why")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_a_group_gives_one_of_its_exceptions() -> None:
    found = explain.explain(stderr_of("raise ExceptionGroup('two', [ValueError('a'), OSError('b')])"))
    assert found is not None
    assert found.cause == "OSError: b"


def test_the_lines_of_two_workers_are_not_mixed_up() -> None:
    one, other = ([f"(RayTrainWorker pid={pid}) {line}" for line in stderr_of(RAISED[4][0])] for pid in (1, 2))
    noise = ["(RayTrainWorker pid=3) Loading: done", "progress: 3"]
    mixed = [line for group in zip(one, other, noise * len(one), strict=False) for line in group]
    found = explain.explain(mixed)
    assert found is not None
    assert found.cause == "Halt"


def test_a_task_error_has_frames_without_a_header() -> None:
    frames = ["  " + line.strip() for line in stderr_of(RAISED[4][0])[1:-1]]
    wrapped = "ray.exceptions.RayTaskError(Halt): \x1b[36mray::_Inner.train()\x1b[39m (pid=9, ip=10.0.0.1)"
    found = explain.explain([wrapped, *frames, "Halt", "the driver is done"])
    assert found is not None
    assert (found.cause, found.origin) == ("Halt", "a worker on 10.0.0.1 (pid 9)")


def test_stacks_that_are_only_shown_are_no_tracebacks() -> None:
    logged = (
        "import logging; logging.warning('slow', stack_info=True); print('INFO: done', file=__import__('sys').stderr)"
    )
    dumped = "import faulthandler; faulthandler.dump_traceback(); print('Loading: 3', file=__import__('sys').stderr)"
    for program in (logged, dumped):
        assert explain.explain(stderr_of(program + "; exit(3)")) is None


def test_what_is_said_in_passing_is_no_cause() -> None:
    program = "import warnings; warnings.simplefilter('always'); warnings.warn('old', DeprecationWarning)\nexit(3)"
    passing = [
        *stderr_of(program),
        "/path/x.py:10: DeprecationWarning: use another",
        "  warnings.warn(",
        "INFO: done",
        "Loading: 3",
        '  "key": 1,',
        "Note: nothing",
        "(PlacementGroupCleaner pid=9) ConnectionError: Found multiple active Ray instances",
    ]
    assert explain.explain(passing) is None
    assert explain.explain([f"(RayTrainWorker pid=12) {line}" for line in passing]) is None
