"""The job's runtime environment, given to Ray from outside the training YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from cpt_launcher.stack.worker import HOOK, KEEP, NEXT_HOOK, SECRETS_KEY, TOKENS

# That is its whole name (ray/_private/runtime_env/constants.py, Ray 2.48). Ray merges what it holds with the YAML's
# `ray_init_kwargs` (ray/_private/worker.py, `init`); the same key in both is an error.
VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def job_config(
    environ: Mapping[str, str],
    *,
    keep: int,
    secrets_key: str | None = None,
    tokens: str = "",
    settings: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """The variable that has every worker of the run call `ray_worker.setup`. What a surrounding Ray job has put there
    stays, and its own hook is called after ours.

    Args:
        keep: how many complete checkpoints stay; 0 keeps all.
        secrets_key: where in the cluster's memory the workers find the secrets.
        tokens: the file that the first rank counts tokens to.
        settings: more variables for the workers; no secrets, Ray logs them.
    """
    given = json.loads(environ.get(VARIABLE) or "{}")
    runtime_env = dict(given.get("runtime_env") or {})
    ours = {KEEP: str(keep), **settings}
    if tokens:
        ours[TOKENS] = tokens
    if secrets_key:
        ours[SECRETS_KEY] = secrets_key
    if (theirs := runtime_env.get("worker_process_setup_hook")) and theirs != HOOK:
        ours[NEXT_HOOK] = theirs
    runtime_env["worker_process_setup_hook"] = HOOK
    runtime_env["env_vars"] = {**(runtime_env.get("env_vars") or {}), **ours}
    return {VARIABLE: json.dumps({**given, "runtime_env": runtime_env})}
