#!/usr/bin/env bash
# The battery that README.md reports; each result goes to results/, and what is there already is not made again.
#     ./run.sh                                   everything, in order
#     ./run.sh practrand words sample 1GB        one stream through PractRand
#     ./run.sh dieharder words element sts       one through a group of dieharder's tests
#     ./run.sh again words element 16            one through a test of which a p value was weak
# Wanted on the PATH: RNG_test (PractRand 0.94) and dieharder (3.31.1).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export OMP_NUM_THREADS=1
python=${PYTHON:-../../.venv/bin/python}

practrand() { # KIND ORDER SIZE
	local out=results/practrand-$1-$2.txt bits
	[[ -e $out ]] && return
	case $1 in words) bits=32 ;; gaussian) bits=16 ;; lattice) bits=8 ;; esac
	$python stream.py "$1" "$2" | RNG_test "stdin$bits" -singlethreaded -tlmin 256MB -tlmax "$3" >"$out.partial"
	mv "$out.partial" "$out"
}

# Tests of `dieharder -a` in groups, each on a stream of its own seed; a word is a number of a test and its -n. Of -a there
# are also 200:11, 200:12, 201, 202, 204 and the lags 203:3 to 203:32, which take 0.4 (n + 1) GB each.
declare -A tests seeds
tests[diehard]=$(echo {0..17})
tests[sts]="100 101 102"
tests[bits]=$(echo 200:{1..10})
tests[dab]=$(echo {205..209})
tests[lagged]=$(echo 203:{0..2})
seeds=([diehard]=1 [sts]=2 [bits]=3 [dab]=4 [lagged]=5)

dieharder() { # KIND ORDER GROUP
	local out=results/dieharder-$1-$2-$3.txt number n
	[[ -e $out ]] && return
	$python stream.py "$1" "$2" --seed "${seeds[$3]}" | while IFS=: read -ru 3 number n; do
		command dieharder -g 200 -D 504 -d "$number" ${n:+-n "$n"} # name, -n, samples, p value, assessment
	done 3< <(printf '%s\n' ${tests[$3]}) >"$out.partial"
	mv "$out.partial" "$out"
}

again() { # KIND ORDER TEST [SEED]: another seed and four times the data, where a p value was weak
	local out=results/again-$1-$2-$3${4:+s$4}.txt
	[[ -e $out ]] && return
	$python stream.py "$1" "$2" --seed "${4:-6}" | command dieharder -g 200 -D 504 -m 4 -d "$3" >"$out.partial"
	mv "$out.partial" "$out"
}

mkdir -p results
if (($#)); then
	"$@"
else
	practrand words element 4GB
	for order in element sample image image-sample seed stream; do
		for kind in words lattice gaussian; do practrand $kind $order 1GB; done
	done
	for group in diehard sts bits dab lagged; do dieharder words element $group; done
	for group in diehard sts; do dieharder lattice sample $group; done
	again words element 16
	again words element 208
	again lattice sample 102
	again lattice sample 102 7
fi
