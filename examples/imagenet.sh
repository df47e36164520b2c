#!/usr/bin/env bash
# ImageNet on the GPUs of this machine by torchrun: certified accuracy of a ResNet-50 that was trained under noise, every 100th
# image of the validation set. Run it again after a kill: it goes on.
#
#     ROOT=/data/imagenet WEIGHTS=resnet50-sigma0.5.pth.tar bash imagenet.sh
#
# ROOT has val/, a folder of images for each class. On several machines, see docs/scaling.md.
set -euo pipefail

ROOT=${ROOT:?the folder of ImageNet} WEIGHTS=${WEIGHTS:?a checkpoint of torchvision\'s ResNet-50}
GPUS=${GPUS:-$(nvidia-smi --list-gpus | wc -l)} DEVICE=${DEVICE:-cuda} OUT=${OUT:-imagenet.tsv}

torchrun --nproc-per-node "$GPUS" -m -- smoothfast certify \
    --model torchvision:resnet50 --weights "$WEIGHTS" --normalize imagenet \
    --data "imagenet:$ROOT" --resize 256 --crop 224 --skip 100 \
    --sigma 0.5 --method grid --radii 0,0.5,1,1.5 --seed 0 \
    --device "$DEVICE" --out "$OUT" --resume ${MORE:-}

smoothfast analyze "$OUT" --radii 0,0.5,1,1.5 --plot "${OUT%.tsv}.png"
