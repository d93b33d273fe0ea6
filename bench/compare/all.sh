#!/bin/sh
# Makes every record of this machine in about half an hour. Run it when nothing else does.
#
#   bench/compare/all.sh RECORD_FOLDER TINY_MODEL MINILM_MODEL CORPUS.jsonl [TEI_ROUTER]
#
# The Python that runs it needs requirements.txt; PYTHON names it. The first run makes the peers'
# exports beside the models, which takes some minutes more.
set -eu
record=$1 tiny=$2 minilm=$3 corpus=$4 tei=${5:-}
here=$(dirname "$0")
python=${PYTHON:-python3}
root=$here/../..
fletcher=${FLETCHER:-$root/target/release/fletcher}

pair() { # script, model, precision, rows, texts
    echo "== $1 $(basename "$2") $3"
    "$python" "$here/$1" "$2" --precision "$3" --rows "$4" --texts "$corpus" --text-rows "$5" \
        --fletcher "$fletcher" --record "$record" 2>/dev/null || echo "   failed"
}

"$python" "$here/footprint.py" --fletcher "$fletcher" --record "$record" >/dev/null
for precision in f32 bf16 int8; do
    "$fletcher" bench -m "$tiny" --precision $precision --batch-size 32 --seq-len 64 \
        --sizes 5000,10000,50000 --text "$corpus" --latency \
        --json "$record/$(date +%F)-bench-tiny-$precision.json" \
        --html "$record/$(date +%F)-bench-tiny-$precision.html"
done
"$fletcher" bench -m "$tiny" --precision f32 --sizes 5000,10000,50000,100000,250000,500000 --soak 300s \
    --json "$record/$(date +%F)-published-tiny-f32.json" --html "$record/$(date +%F)-published-tiny-f32.html"
# BERT-tiny with room for 8,192 tokens, to see how time grows with the length.
long=$(mktemp -d)
"$python" "$here/bert_tiny.py" --positions 8192 "$minilm" "$long/bert-tiny-8192"
for precision in f32 bf16 int8; do
    "$fletcher" bench -m "$long/bert-tiny-8192" --precision $precision --latency \
        --latency-tokens 16,32,64,128,256,512,1024,2048,4096,8192 \
        --json "$record/$(date +%F)-lengths-tiny-$precision.json" \
        --html "$record/$(date +%F)-lengths-tiny-$precision.html"
done
rm -r "$long"
for precision in f32 bf16 int8; do pair vs_openvino.py "$tiny" $precision 4096 5000; done
for precision in f32 int8; do pair vs_onnxruntime.py "$tiny" $precision 4096 1000; done
pair vs_pytorch.py "$tiny" f32 2048 1000
pair vs_pytorch.py "$tiny" bf16 2048 1000
pair vs_sentence_transformers.py "$tiny" f32 2048 500
for precision in f32 bf16 int8 int8-bf16; do pair vs_openvino.py "$minilm" $precision 256 200; done
for precision in f32 int8; do pair vs_onnxruntime.py "$minilm" $precision 256 200; done
pair vs_pytorch.py "$minilm" f32 192 120
pair vs_sentence_transformers.py "$minilm" f32 192 120
if [ -n "$tei" ]; then
    for backend in ort candle; do
        for model in "$tiny" "$minilm"; do
            "$python" "$here/vs_tei.py" "$model" --tei "$tei" --tei-backend $backend --rows 512 \
                --texts "$corpus" --text-rows 250 --fletcher "$fletcher" --record "$record" \
                || echo "   failed"
        done
    done
fi
(cd "$root" && cargo xtask bench-table)
