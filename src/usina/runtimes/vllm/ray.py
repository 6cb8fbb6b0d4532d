"""vLLM over several hosts: the first rank of a gang is the head of a Ray cluster and serves, the others join it. Pure.

Where the head is, ranks find by what their stack tells them: ``MASTER_ADDR`` on networks of a project, Slurm's list of
nodes in its jobs. See https://docs.vllm.ai/en/stable/serving/parallelism_scaling/ and
https://docs.ray.io/en/latest/cluster/cli.html.
"""

from __future__ import annotations

import shlex

_OFFSET = 7000  # of Ray's port above that of the replica, so that two gangs do not meet on one host

_SCRIPT = """
rank=${USINA_RANK:-${SLURM_PROCID:-0}}
if [ -z "$MASTER_ADDR" ]; then MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1); fi
ray_port=$((%(port)s + %(offset)s))
if [ "$rank" != 0 ]; then
  tries=0
  until ray start --address "$MASTER_ADDR:$ray_port" --block; do
    tries=$((tries + 1)); [ $tries -lt 60 ] || exit 1; sleep 5
  done
  exit
fi
ray start --head --port "$ray_port" || exit 1
trap 'kill -TERM "$serving" 2>/dev/null' TERM
export RAY_ADDRESS="127.0.0.1:$ray_port"
until [ "$(ray status 2>/dev/null | grep -c node_)" -ge %(hosts)s ]; do sleep 2; done
%(serve)s & serving=$!
wait "$serving"; code=$?
ray stop --force >/dev/null 2>&1
exit $code
"""


def joined(serve: tuple[str, ...], hosts: int) -> tuple[str, ...]:
    """The command of every rank of a gang, of which the first one serves."""
    words = " ".join(shlex.quote(word) if word != "{port}" else word for word in serve)
    text = _SCRIPT % {"port": "{port}", "offset": _OFFSET, "hosts": hosts, "serve": words}
    return "/bin/sh", "-c", text
