"""vLLM over several hosts: the first rank of a gang is the head of a Ray cluster and serves, the others join it. Pure.

Where the head is, ranks find by what their stack tells them: ``MASTER_ADDR`` on networks of a project, Slurm's list of
nodes in its jobs. By itself Ray takes the address of the way to the internet, and without one the loopback's; so each
says which one leads to the head. Whoever reaches a Ray without tokens may run what they like there: the head writes one
into the folder that all ranks of a run have in common, for nobody else to read (Ray 2.52 and later ask for it). See
https://docs.vllm.ai/en/stable/serving/parallelism_scaling/, https://docs.ray.io/en/latest/cluster/cli.html and
https://docs.ray.io/en/latest/ray-security/token-auth.html.
"""

from __future__ import annotations

import shlex

_OFFSET = 7000  # of Ray's port above that of the replica, so that two gangs do not meet on one host

_SCRIPT = """
rank=${USINA_RANK:-${SLURM_PROCID:-0}}
if [ -z "$MASTER_ADDR" ]; then MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1); fi
ray_port=$((%(port)s + %(offset)s))
own=$(python3 - "$MASTER_ADDR" <<'END'
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.connect((sys.argv[1], 9))
    print(line.getsockname()[0])
END
)
case "$own" in 127.*) own=$(hostname -I | cut -d ' ' -f 1) ;; esac
export VLLM_HOST_IP="$own" RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token" RAY_USAGE_STATS_ENABLED=0
if [ "$rank" != 0 ]; then
  tries=0
  until [ -s "$RAY_AUTH_TOKEN_PATH" ] && ray health-check --address "$MASTER_ADDR:$ray_port" >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 60 ] || exit 1; sleep 5
  done
  exec ray start --address "$MASTER_ADDR:$ray_port" --node-ip-address "$own" --block
fi
(umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > .ray-token.new) || exit 1
mv .ray-token.new .ray-token
ray start --head --port "$ray_port" --node-ip-address "$own" --include-dashboard false || exit 1
trap 'kill -TERM "$serving" 2>/dev/null' TERM
export RAY_ADDRESS="$own:$ray_port"
until [ "$(ray status 2>/dev/null | grep -c node_)" -ge %(hosts)s ]; do sleep 2; done
%(serve)s & serving=$!
wait "$serving"; code=$?
while kill -0 "$serving" 2>/dev/null; do wait "$serving"; code=$?; done  # told to end, it ends what it has begun
ray stop --force >/dev/null 2>&1
exit $code
"""


def joined(serve: tuple[str, ...], hosts: int) -> tuple[str, ...]:
    """The command of every rank of a gang, of which the first one serves."""
    words = " ".join(shlex.quote(word) if word != "{port}" else word for word in serve)
    text = _SCRIPT % {"port": "{port}", "offset": _OFFSET, "hosts": hosts, "serve": words}
    return "/bin/sh", "-c", text
