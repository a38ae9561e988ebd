#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one call of under ten minutes; see benchmarks/README.md.
# Usage: bash benchmarks/gpu_check.sh [--dry-run] [--out FOLDER] [--limit SECONDS] [--only STAGE ...]
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_check.py" "$@"
