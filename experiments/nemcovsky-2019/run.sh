#!/usr/bin/env bash
# Trains and measures what README.md reports.
#     ./run.sh                            everything, in order
#     ./run.sh trained adversarial pni-w  these networks; two such calls side by side use two cores
#     ./run.sh swept adversarial pni-w    their evaluations
# What is there already is not made again; what was cut off goes on.
# Wanted: a folder (or link) cifar10-jpeg beside this file, with train/<class>/*.jpg and test/<class>/*.jpg.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export OMP_NUM_THREADS=1
smoothfast=${SMOOTHFAST:-../../.venv/bin/smoothfast}
python=${PYTHON:-../../.venv/bin/python}
data=(--data folder:cifar10-jpeg)

train() { # NAME OPTION…
	local out=trained/$1
	[[ -e $out/model.safetensors ]] && return
	echo "smoothfast train ${*:2} ${data[*]} --out $out" >>"logs/$1.log"
	{ time $smoothfast train "${@:2}" "${data[@]}" --out "$out" --resume; } >>"logs/$1.log" 2>&1
}

sweep() { # NAME WHAT OPTION…
	local out=sweeps/$1-$2
	[[ -e $out.md ]] && return
	local plot=()
	[[ $2 =~ ^(sigma|samples)$ ]] && plot=(--plot "$out.png")
	$smoothfast sweep --model "$(network "$1")" --weights "trained/$1/model.safetensors" "${data[@]}" "${@:3}" \
		--out "$out.csv" "${plot[@]}" >"$out.partial"
	mv "$out.partial" "$out.md"
}

network() {
	case $1 in
	clean | adversarial) echo resnet20b ;;
	pni-w) echo resnet20b+pni ;;
	*) echo resnet20b+cni ;;
	esac
}

from_clean=(--preset quick-adversarial --weights trained/clean/model.safetensors --epochs 4 --select last)
cni=(--model resnet20b+cni --norms running --clip-norm 0.5)
from_cni=("${cni[@]}" --weights trained/cni-w/model.safetensors --batch 128 --validation 0 --select last)

trained() { # NAME
	case $1 in
	clean) train clean --preset quick-clean --model resnet20b --validation 2500 --epochs 4 ;;
	adversarial) train adversarial "${from_clean[@]}" --model resnet20b --learning-rate 0.1 ;;
	pni-w) train pni-w "${from_clean[@]}" --model resnet20b+pni --learning-rate 0.1 ;;
	cni-w) train cni-w "${from_clean[@]}" "${cni[@]}" --noise-strength 0.1 --learning-rate 0.05 ;;
	cni-i+w) train cni-i+w --preset cni-i+w-finetune "${from_cni[@]}" --epochs 1 ;;
	epgd) train epgd --preset epgd-finetune "${from_cni[@]}" --epochs 0.2 ;;
	high-k) train high-k --preset high-k-finetune "${from_cni[@]}" --epochs 0.2 ;;
	esac
}

images=(--skip 5) some=(--skip 20) # 1,000 and 250 of 5,000

swept() { # NAME
	sweep "$1" single "${images[@]}" --sigmas 0 --samples 1 --voting prediction --attack pgd --attack-seeds 3
	sweep "$1" sigma "${images[@]}" --sigmas 0,0.02,0.04,0.06,0.09 --samples 1,4,16,32 --attack pgd
	sweep "$1" wide "${images[@]}" --sigmas 0.12,0.18 --samples 1,4,16,32 --attack pgd # where CNI is still rising
	local most=128
	[[ $1 == cni-w ]] && most=512
	find_best "$1"
	sweep "$1" samples "${images[@]}" "${at[@]}" --samples "$(rising "$most")" --attack pgd --attack-seeds 3
	attacked "$1"
}

attacked() { # NAME
	find_best "$1"
	sweep "$1" legacy "${images[@]}" "${at[@]}" --samples 1,8,64 --attack pgd-legacy --attack-seeds 3
	sweep "$1" eot "${some[@]}" "${at[@]}" --samples 1,8,64 --attack epgd --attack-samples 32 --restarts 3
	[[ $1 == cni-w ]] || return 0
	local one=("${some[@]}" "${at[@]}" --samples 64 --voting prediction --attack)
	sweep cni-w pgd-7 "${one[@]}" pgd
	sweep cni-w pgd-56 "${one[@]}" pgd --steps 56
	sweep cni-w epgd-7x8 "${one[@]}" epgd --attack-samples 8
	sweep cni-w smoothadv-7x8 "${one[@]}" smoothadv --attack-samples 8
}

find_best() { # NAME: sets `at`, its best sigma, which the attack sees too
	local sigma
	sigma=$($python report.py sigma "$1")
	at=(--sigmas "$sigma" --attack-sigma "$sigma")
}

published() { $python publish.py "$1"; } # NAME

rising() { # LAST: 1,2,4,…
	local number=1 all=1
	while ((number < $1)); do number=$((2 * number)) && all+=,$number; done
	echo "$all"
}

mkdir -p logs sweeps trained
if (($#)); then
	for name in "${@:2}"; do "$1" "$name"; done
else
	for name in clean adversarial pni-w cni-w cni-i+w epgd high-k; do trained "$name"; done
	for name in adversarial pni-w cni-w cni-i+w epgd high-k; do swept "$name"; done
	for name in adversarial pni-w; do published "$name"; done # those of CNI take 7.6 MB
fi
