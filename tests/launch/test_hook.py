import json

from cpt_launcher.launch import hook


def test_what_a_surrounding_job_has_set_stays() -> None:
    theirs = {
        "runtime_env": {"env_vars": {"A": "1"}, "worker_process_setup_hook": "their.hook"},
        "metadata": {"x": "y"},
    }
    made = json.loads(hook.job_config({hook.VARIABLE: json.dumps(theirs)}, keep=2, secrets_key="k")[hook.VARIABLE])
    assert made == {
        "metadata": {"x": "y"},
        "runtime_env": {
            "worker_process_setup_hook": "cpt_launcher.stack.worker.setup",
            "env_vars": {"A": "1", "CPT_KEEP": "2", "CPT_SECRETS_KEY": "k", "CPT_NEXT_HOOK": "their.hook"},
        },
    }


def test_alone_it_holds_the_hook_and_no_value() -> None:
    made = json.loads(hook.job_config({"HF_TOKEN": "hf_value"}, keep=0)[hook.VARIABLE])
    assert made == {
        "runtime_env": {"worker_process_setup_hook": "cpt_launcher.stack.worker.setup", "env_vars": {"CPT_KEEP": "0"}}
    }
