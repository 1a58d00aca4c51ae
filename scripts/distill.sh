#!/usr/bin/env bash
# Distils an ImageFolder: trains a teacher, ranks and selects images, optimises them, trains students on the result.
#
#   TRAIN_DIR=my/train VAL_DIR=my/val IPC=10 bash scripts/distill.sh
#
# Each variable below can be set in the environment, except those that other programs use, too: ARCH NAME SEED LR DEVICE
# INIT METHOD STAGES WORKERS NPROC are taken from a script's own lines or from DELT_ARCH, DELT_SEED and so on.
# Relative paths count from the repository's root. An empty variable leaves the stage its own default (python -m recover
# --help). The same command resumes: finished work is skipped. The scripts named for a data set only set these variables
# and source this file; another method on the settings of one of them:
#
#   DELT_METHOD=cda RUN_DIR=runs/cda bash scripts/cifar10_resnet18_ipc10.sh
set -euo pipefail
set -f    # STAGES, TEACHERS, STUDENT, PROTOCOL, BASELINES and the *_ARGS are split into words, and nothing more
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

NAME=${NAME:-$(basename "$0" .sh)}         # of the run: runs/NAME

# What is distilled, and where the run's files go
STAGES=${STAGES:-squeeze ranking recover validate}    # any of them, in this order
RUN_DIR=${RUN_DIR:-runs/$NAME}             # everything that the run writes, unless a path below says otherwise
DATASET=${DATASET:-}                       # a known data set's name for its defaults; empty: read from the folder
TRAIN_DIR=${TRAIN_DIR:-}                   # real training images, one folder per class
VAL_DIR=${VAL_DIR:-}                       # real test images, one folder per class

# squeeze: the teacher, or several
ARCH=${ARCH:-resnet18}                     # the teacher's architecture
TEACHERS=${TEACHERS:-$ARCH}                # several architectures: the first one ranks, all recover and label
RANKER_PATH=${RANKER_PATH:-}               # a checkpoint for each; torchvision: its ImageNet weights; empty: train them
SQUEEZE_EPOCHS=${SQUEEZE_EPOCHS:-}
KEEP_EPOCHS=${KEEP_EPOCHS:-}               # the networks of these epochs are kept, too
TEACHER_EPOCH=${TEACHER_EPOCH:-}           # a kept epoch, whose networks rank and recover; empty: the last one
LABEL_EPOCH=${LABEL_EPOCH-$TEACHER_EPOCH}  # a kept epoch, whose networks label

# ranking: which real images start the synthesis
IPC=${IPC:-10}                             # images per class
CRITERION=${CRITERION:-medium}             # python -m ranking.criteria lists them
SHORT_CLASSES=${SHORT_CLASSES:-}           # classes with fewer images than IPC: error, repeat or keep
RANKING_FILE=${RANKING_FILE:-$RUN_DIR/ranking.csv}    # the scores
OUTPUT_DIR=${OUTPUT_DIR:-$RUN_DIR/init}    # the selected images

# recover: the synthesis. METHOD is a recipe; what is set below it overrides the recipe, what is empty leaves it.
METHOD=${METHOD:-delt}                     # python -m recover.methods lists them; the result's name in the table, too
INIT_PATH=${INIT_PATH:-$OUTPUT_DIR}        # the images it starts from; for a start from noise they name the classes
SYN_PATH=${SYN_PATH:-$RUN_DIR/syn}         # the synthetic images
ITR=${ITR:-}                               # iterations of the images that start first (delt: 4000)
ROUND_ITR=${ROUND_ITR:-}                   # iterations of a round (delt: 500); 0: one round, all images start at once
LR=${LR:-}                                 # learning rate of the pixels
R_BN=${R_BN:-}                             # weight of the BatchNorm statistics
FIRST_BN_MULTIPLIER=${FIRST_BN_MULTIPLIER:-}    # extra weight of the first BatchNorm layer
JITTER=${JITTER:-}                         # random roll, in pixels
CURRICULUM=${CURRICULUM:-}                 # how the crop's lower bound falls: cosine, linear or step
MILESTONE=${MILESTONE:-}                   # the share of ITR over which it falls
MIN_CROP=${MIN_CROP:-}                     # where it ends
INIT=${INIT:-}                             # images or noise
BATCH_BY=${BATCH_BY:-}                     # class or index
IMAGE_FORMAT=${IMAGE_FORMAT:-}
RECOVER_BATCH=${RECOVER_BATCH:-}           # images of a batch

# validate: students trained on the synthetic images
STUDENT=${STUDENT:-${TEACHERS%% *}}        # one architecture or several
PROTOCOL=${PROTOCOL:-delt}                 # how students are trained: one or several (python -m validate.protocols)
VAL_EPOCHS=${VAL_EPOCHS:-}
SEEDS=${SEEDS:-3}                          # students of each kind, from SEED on
BASELINES=${BASELINES-random}              # sets to compare with: real images by these criteria; selection: OUTPUT_DIR

# every stage
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
PRECISION=${PRECISION:-auto}               # auto, fp32, bf16 or fp16
COMPILE=${COMPILE:-auto}                   # auto, on or off
WORKERS=${WORKERS:-}                       # processes that load images

# Several processes, by torchrun: ranking and recover divide their units, squeeze and validate their batches
NPROC=${NPROC:-1}                          # processes on this machine, one for each GPU
NNODES=${NNODES:-1}                        # machines, or a range as 1:4; this script is started on each of them
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-0}} # this machine's number: 0 also makes the tables and the page
MASTER_ADDR=${MASTER_ADDR:-}               # NNODES above 1: the machine where all meet, and a free port on it
MASTER_PORT=${MASTER_PORT:-29400}
MAX_RESTARTS=${MAX_RESTARTS:-0}            # how often processes that died are replaced

# further arguments of a stage, as they stand
SQUEEZE_ARGS=${SQUEEZE_ARGS:-}
RANKING_ARGS=${RANKING_ARGS:-}
STATISTICS_ARGS=${STATISTICS_ARGS:-}       # of squeeze.statistics and squeeze.barycenters, for methods that read them
BARYCENTERS_ARGS=${BARYCENTERS_ARGS:-}
RECOVER_ARGS=${RECOVER_ARGS:-}
VALIDATE_ARGS=${VALIDATE_ARGS:-}

# begin, option and run make a stage's command line, piece by piece, and start it.
begin() {
    line=("$PYTHON_BIN")
    if [ "$NPROC" -gt 1 ] || [ "$NNODES" != 1 ]; then
        line+=(-m utils.run.launch --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS")
        if [ "$NNODES" = 1 ]; then
            line+=(--standalone)
        else
            line+=(--nnodes "$NNODES" --rdzv-id "$NAME-$1")
            line+=(--rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT")
        fi
    fi
    line+=(-m "$1")
    option --dataset "$DATASET"
    option --seed "$SEED"
    option --device "$DEVICE"
    option --precision "$PRECISION"
    option --compile "$COMPILE"
    option --workers "$WORKERS"
}

option() {
    if [ -n "$2" ]; then line+=("$1" "$2"); fi
}

run() {
    echo
    printf '$'
    printf ' %q' "${line[@]}"
    echo
    "${line[@]}"
}

# The checkpoint of an epoch beside that of the last one, as squeeze names it.
of_epoch() {    # EPOCH CHECKPOINT
    if [ -n "$1" ]; then echo "${2%.*}.epoch$1.${2##*.}"; else echo "$2"; fi
}

teacher_flags() {    # EPOCH COUNT [FIRST]: the networks of an epoch of COUNT teachers, from the FIRST (0) on
    local number first=${3:-0}
    line+=(--teacher-arch "${archs[@]:$first:$2}")
    [ "$RANKER_PATH" != torchvision ] || return 0
    line+=(--teacher-path)
    for ((number = first; number < first + $2; number++)); do
        line+=("$(of_epoch "$1" "${teachers[$number]}")")
    done
}

stage_squeeze() {
    local number
    for number in "${!archs[@]}"; do
        begin squeeze
        option --train-dir "$TRAIN_DIR"
        option --val-dir "$VAL_DIR"
        option --arch "${archs[$number]}"
        option --output "${teachers[$number]}"
        option --epochs "$SQUEEZE_EPOCHS"
        [ -z "$KEEP_EPOCHS" ] || line+=(--keep-epochs $KEEP_EPOCHS)
        line+=($SQUEEZE_ARGS)
        run
    done
}

select_images() {    # CRITERION OUTPUT_DIR
    begin ranking
    option --train-dir "$TRAIN_DIR"
    teacher_flags "$TEACHER_EPOCH" 1
    option --ranking-file "$RANKING_FILE"
    option --criterion "$1"
    option --output-dir "$2"
    option --ipc "$IPC"
    option --short-classes "$SHORT_CLASSES"
    line+=($RANKING_ARGS)
    run
}

stage_ranking() {
    select_images "$CRITERION" "$OUTPUT_DIR"
}

# What METHOD reads of the real images: a file of each teacher, or two.
collect() {    # MODULE FOLDER FLAG...
    local number module=$1 folder=$2
    shift 2
    for number in "${!archs[@]}"; do
        statistics+=("$RUN_DIR/$folder/$number-${archs[$number]//\//_}.safetensors")
        begin "$module"
        option --train-dir "$TRAIN_DIR"
        teacher_flags "$TEACHER_EPOCH" 1 "$number"
        option --output "${statistics[${#statistics[@]} - 1]}"
        line+=("$@")
        run
    done
}

stage_recover() {
    statistics=()
    [ -z "$NEEDS_STATISTICS" ] || collect squeeze.statistics statistics $NEEDS_STATISTICS $STATISTICS_ARGS
    [ "$NEEDS_BARYCENTERS" = false ] || collect squeeze.barycenters barycenters --ipc "$IPC" $BARYCENTERS_ARGS
    begin recover
    option --method "$METHOD"
    option --init-dir "$INIT_PATH"
    option --syn-dir "$SYN_PATH"
    teacher_flags "$TEACHER_EPOCH" ${#archs[@]}
    option --ipc "$IPC"
    option --iterations "$ITR"
    option --round-iterations "$ROUND_ITR"
    option --lr "$LR"
    option --r-bn "$R_BN"
    option --first-bn-multiplier "$FIRST_BN_MULTIPLIER"
    option --jitter "$JITTER"
    option --curriculum "$CURRICULUM"
    option --milestone "$MILESTONE"
    option --min-crop "$MIN_CROP"
    option --init "$INIT"
    option --batch-by "$BATCH_BY"
    option --image-format "$IMAGE_FORMAT"
    option --batch-size "$RECOVER_BATCH"
    option --contact-sheet "$RUN_DIR/contact_sheet.png"
    [ ${#statistics[@]} -eq 0 ] || line+=(--statistics "${statistics[@]}")
    line+=($RECOVER_ARGS)
    run
}

stage_validate() {
    local baseline methods=("$METHOD") sets=("$SYN_PATH")
    for baseline in $BASELINES; do
        if [ "$baseline" = selection ]; then
            methods+=("$CRITERION") sets+=("$OUTPUT_DIR")
        else
            select_images "$baseline" "$RUN_DIR/$baseline"
            methods+=("$baseline") sets+=("$RUN_DIR/$baseline")
        fi
    done
    begin validate
    line+=(--syn-dir "${sets[@]}" --method "${methods[@]}")
    option --val-dir "$VAL_DIR"
    teacher_flags "$LABEL_EPOCH" ${#archs[@]}
    line+=(--student-arch $STUDENT --protocol $PROTOCOL)
    option --output-dir "$RUN_DIR"
    option --epochs "$VAL_EPOCHS"
    option --seeds "$SEEDS"
    line+=($VALIDATE_ARGS)
    run
    [ "$NODE_RANK" -eq 0 ] || return 0
    if [ "$IPC" -gt 1 ]; then    # one image is no pair
        line=("$PYTHON_BIN" -m validate.report.diversity "${sets[@]}" --method "${methods[@]}")
        option --dataset "$DATASET"
        option --device "$DEVICE"
        teacher_flags "$TEACHER_EPOCH" 1
        option --output-dir "$RUN_DIR"
        run
    fi
    line=("$PYTHON_BIN" -m validate.report "$RUN_DIR")
    run
    line=("$PYTHON_BIN" -m validate.report.summary "$RUN_DIR")
    run
}

# What can be known to be wrong is said now, not in the middle of hours of work.
known() {    # VARIABLE MODULE WORD...: the registry of the module knows these words
    local message variable=$1 module=$2
    shift 2
    [ $# -gt 0 ] || return 0
    message=$("$PYTHON_BIN" -m "$module" "$@" 2>&1 > /dev/null | tail -n 1) || fail "$variable: ${message#error: }"
}

folder() {    # VARIABLE WHAT
    local hint="set $1 to $2"
    [ -z "$DATASET" ] || hint="run 'bash scripts/prepare_data.sh $DATASET', or $hint"
    [ -n "${!1}" ] || fail "$1 is empty: $hint"
    [ -d "${!1}" ] || fail "$1: no folder ${!1} (relative paths count from the repository's root): $hint"
}

wants() {
    case " $STAGES " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

[ -z "$IGNORED" ] || echo "not taken from the environment:$IGNORED"
for word in $STAGES; do
    case $word in
        squeeze|ranking|recover|validate) ;;
        *) fail "STAGES: '$word' is none of: squeeze ranking recover validate" ;;
    esac
done
need_packages
known DATASET utils.data.datasets $DATASET
criteria=    # of the sets that validate compares with
for word in $BASELINES; do
    [ "$word" = selection ] || criteria+=" $word"
done
if wants ranking; then known CRITERION ranking.criteria $CRITERION; fi
NEEDS_STATISTICS= NEEDS_BARYCENTERS=false
if wants recover; then
    known METHOD recover.methods "$METHOD"
    eval "$("$PYTHON_BIN" -m recover.methods --needs "$METHOD" $DATASET)"
    case $METHOD/$ROUND_ITR in
        delt/*|*/|*/0|*/"$ITR") ;;
        *) echo "METHOD=$METHOD with rounds of ROUND_ITR=$ROUND_ITR iterations; ROUND_ITR= leaves this to the recipe" ;;
    esac
fi
if wants validate; then
    known PROTOCOL validate.protocols $PROTOCOL
    known BASELINES ranking.criteria $criteria
fi
[ "$NNODES" = 1 ] || [ -n "$MASTER_ADDR" ] ||
    fail "NNODES=$NNODES: set MASTER_ADDR to the machine where all of them meet (scripts/slurm does)"
archs=($TEACHERS)
teachers=()    # a checkpoint of the last epoch for each; none of torchvision's weights
ready=
if [ "$RANKER_PATH" = torchvision ]; then
    ready="torchvision's weights of ${archs[*]} are the teacher"
    [ -z "$TEACHER_EPOCH$LABEL_EPOCH" ] || fail "TEACHER_EPOCH, LABEL_EPOCH: torchvision has no weights of single epochs"
elif [ -n "$RANKER_PATH" ]; then
    teachers=("$RANKER_PATH")
    [ ${#archs[@]} -eq 1 ] || teachers=($RANKER_PATH)
    [ ${#archs[@]} -eq ${#teachers[@]} ] ||
        fail "RANKER_PATH: names ${#teachers[@]} checkpoints for the ${#archs[@]} TEACHERS: set it to one for each"
    ready="RANKER_PATH gives the teacher"
elif [ ${#archs[@]} -eq 1 ]; then
    teachers=("$RUN_DIR/teacher.pth")
else
    for arch in "${archs[@]}"; do
        path=$RUN_DIR/teachers/${arch//\//_}.pth
        case " ${teachers[*]-} " in *" $path "*) fail "TEACHERS: names $arch twice" ;; esac
        teachers+=("$path")
    done
    if wants squeeze; then known TEACHERS utils.nets.models "${archs[@]}"; fi
fi
for epoch in $TEACHER_EPOCH $LABEL_EPOCH; do
    if wants squeeze && [ -z "$ready" ]; then
        case " $KEEP_EPOCHS " in *" $epoch "*) ;; *) fail "TEACHER_EPOCH, LABEL_EPOCH: KEEP_EPOCHS has no $epoch" ;; esac
    fi
done
for path in ${teachers[@]+"${teachers[@]}"}; do
    for epoch in "$TEACHER_EPOCH" "$LABEL_EPOCH"; do
        found=$(of_epoch "$epoch" "$path")
        if [ -n "$ready" ]; then
            [ -f "$found" ] ||
                fail "RANKER_PATH: no file $found: set it to a teacher's checkpoint (the stage squeeze trains one)"
        else
            wants squeeze || [ -f "$found" ] ||
                fail "no teacher at $found: set RANKER_PATH to a checkpoint, or put squeeze into DELT_STAGES"
        fi
    done
done
if [ -n "$ready" ] && wants squeeze; then
    echo "squeeze is skipped: $ready"
    STAGES=" $STAGES "
    STAGES=${STAGES// squeeze / }
fi

if wants squeeze || wants ranking; then folder TRAIN_DIR "the folder of real training images"; fi
if wants squeeze || wants validate; then folder VAL_DIR "the folder of real test images"; fi
if wants recover && [ "$NEEDS_STATISTICS$NEEDS_BARYCENTERS" != false ]; then
    folder TRAIN_DIR "the folder of real training images, of which METHOD=$METHOD reads statistics"
fi
if wants validate && [ -n "$criteria" ]; then
    folder TRAIN_DIR "the folder of real training images, or BASELINES to nothing"
fi

for stage in $STAGES; do
    "stage_$stage"
done
