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
STAGES=${STAGES:-squeeze ranking statistics recover validate}    # any of them, in this order
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
CLASSES=${CLASSES:-}                       # a file of the class folders' names in label order, for a teacher without
CLASSES_BY=${CLASSES_BY:-}                 # position: for folders of other names in INIT_PATH and SYN_PATH

# ranking: which real images start the synthesis
IPC=${IPC:-10}                             # images per class
CRITERION=${CRITERION:-}                   # python -m ranking.criteria lists them; empty: METHOD's own start
SHORT_CLASSES=${SHORT_CLASSES:-}           # classes with fewer images than IPC: error, repeat or keep
RANKING_FILE=${RANKING_FILE:-}             # the scores; empty: RUN_DIR/ranking.csv, where all images have some
OUTPUT_DIR=${OUTPUT_DIR:-}                 # the selected images; empty: RUN_DIR/init

# recover: the synthesis. METHOD is a recipe; what is set below it overrides the recipe, what is empty leaves it.
named=${METHOD:-}                          # the name that is given, if one is
METHOD=${METHOD:-delt}                     # python -m recover.methods lists them; the result's name in the table, too
INIT_PATH=${INIT_PATH:-}                   # the images it starts from; empty: those that ranking selects
SYN_PATH=${SYN_PATH:-}                     # the synthetic images; empty: RUN_DIR/syn
ITR=${ITR:-}                               # iterations of the images that start first (delt: 4000)
MOST_ITR=${MOST_ITR:-}                     # without ITR: the recipe's, but at most so many
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
PROTOCOL=${PROTOCOL:-delt}                 # one or several of python -m validate.protocols, or own: that of METHOD
VAL_EPOCHS=${VAL_EPOCHS:-}
SEEDS=${SEEDS:-3}                          # students of each kind, from SEED on
BASELINES=${BASELINES-random}              # sets to compare with: real images by these criteria; selection: OUTPUT_DIR

# Several processes, by torchrun: ranking and recover divide their units, squeeze and validate their batches
NPROC=${NPROC:-1}                          # processes on this machine, one for each GPU
NNODES=${NNODES:-1}                        # machines, or a range as 1:4; this script is started on each of them
NODE_RANK=${NODE_RANK:-${SLURM_NODEID:-0}} # this machine's number: 0 also makes the tables and the page
MASTER_ADDR=${MASTER_ADDR:-}               # NNODES above 1: the machine where all meet, and a free port on it
MASTER_PORT=${MASTER_PORT:-29400}
MAX_RESTARTS=${MAX_RESTARTS:-0}            # how often processes that died are replaced
[ "$NNODES" != 1 ] || NODE_RANK=0          # of one machine, whatever a cluster exports

source scripts/stages.sh

launcher() {
    [ "$NPROC" -gt 1 ] || [ "$NNODES" != 1 ] || return 0
    line+=(-m utils.run.launch --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS")
    if [ "$NNODES" = 1 ]; then
        line+=(--standalone)
    else
        line+=(--nnodes "$NNODES" --rdzv-id "$NAME-$1")
        line+=(--rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT")
    fi
}

stage_squeeze() {
    local number
    for number in "${!archs[@]}"; do
        train_teacher "$number"
    done
}

stage_ranking() {
    local scores=${RANKING_FILE:-$RUN_DIR/ranking.csv}
    case $start in *--crops*) ;; *--candidates*) scores=$RANKING_FILE ;; esac    # or all images would be scored
    select_images "$OUTPUT_DIR" "$scores" $start
}

# What METHOD reads of the real images: a file of each teacher, or two.
stage_statistics() {
    local kind number
    for kind in "${kinds[@]}"; do
        for number in "${!archs[@]}"; do
            collect "$RUN_DIR" "$kind" "$number"
        done
    done
}

stage_recover() {
    begin_recover "$METHOD" "$INIT_PATH" "$SYN_PATH" ${#archs[@]}
    [ ${#files[@]} -eq 0 ] || line+=(--statistics "${files[@]}")
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
    line+=($RECOVER_ARGS)
    run
}

stage_validate() {
    local baseline scores=${RANKING_FILE:-$RUN_DIR/ranking.csv}
    names=("$METHOD") sets=("$SYN_PATH")
    case $start in *--crops*) scores= ;; esac    # of which they are
    for baseline in $BASELINES; do
        if [ "$baseline" != selection ]; then
            select_images "$RUN_DIR/$baseline" "$scores" --criterion "$baseline"
            names+=("$baseline") sets+=("$RUN_DIR/$baseline")
        else
            names+=("$(start_name $start)") sets+=("$OUTPUT_DIR")
        fi
    done
    train_students ${#archs[@]} $PROTOCOL
    [ "$NODE_RANK" -eq 0 ] || return 0
    [ "$IPC" -eq 1 ] || measure_diversity "$RUN_DIR"    # one image is no pair
    line=("$PYTHON_BIN" -m validate.report "$RUN_DIR")
    run
    line=("$PYTHON_BIN" -m validate.report.summary "$RUN_DIR")
    run
}

wants() {
    case " $STAGES " in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

drop() {    # STAGE
    STAGES=" $STAGES "
    STAGES=${STAGES// $1 / }
}

skip() {    # STAGE WHY
    wants "$1" || return 0
    echo "$1 is skipped: $2"
    drop "$1"
}

leave_out() {    # BASELINE WHY
    [[ " $BASELINES " == *" $1 "* ]] || return 0
    echo "BASELINES: $1 is left out: $2"
    BASELINES=" $BASELINES "
    BASELINES=${BASELINES// $1 / }
}

# A selection that is there is called after what made it, by its manifest.
find_start() {
    local made by like="$start "
    made=$("$PYTHON_BIN" -m ranking.criteria --made "$OUTPUT_DIR" 2> /dev/null) ||
        broken "$?" ranking.criteria --made "$OUTPUT_DIR"
    [ -n "$made" ] || return 0
    by=${made#--criterion } by=${by%% *}
    [ "${CRITERION:-$by}" = "$by" ] ||
        fail "CRITERION: $OUTPUT_DIR was selected by $by, not by $CRITERION: set CRITERION=$by, or to nothing"
    like=${like/ [0-9]*[x+] / * }    # --candidates 2x or 300+, of which the manifest has the number
    [[ "$made " == $like ]] || start=$made
}

# What compare.sh reads, and this does not: here all teachers label, and ITR says how many iterations there are.
for name in LABELLERS ITR_SHARE STARTS; do
    [ -z "${!name:-}" ] || IGNORED+=" $name"
done
[ -z "${METHODS:-}" ] || IGNORED+=" METHODS (DELT_METHOD is read)"
[ -z "${PROTOCOLS:-}" ] || IGNORED+=" PROTOCOLS (PROTOCOL is read)"
[ -z "$IGNORED" ] || echo "not taken from the environment:$IGNORED"
check_numbers
[ -z "$MOST_ITR" ] || need_number MOST_ITR 0
if [ "$NNODES" != 1 ]; then need_number NODE_RANK 0; fi
[[ $NNODES =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] || fail "NNODES: '$NNODES' is no number of machines, nor a range as 1:4"
for word in $STAGES; do
    case $word in
        squeeze|ranking|statistics|recover|validate) ;;
        *) fail "STAGES: '$word' is none of: squeeze ranking statistics recover validate" ;;
    esac
done
refuse_words RECOVER_ARGS "would make another method's set, under the name of this one: set DELT_METHOD" --method
refuse_words RECOVER_ARGS "would make the set where no other stage looks for it: set SYN_PATH" --syn-dir
need_packages
known DATASET utils.data.datasets $DATASET
criteria=    # of the sets that validate compares with
for word in $BASELINES; do
    [ "$word" = selection ] || criteria+=" $word"
done
known CRITERION ranking.criteria $CRITERION
if wants recover; then
    known METHOD recover.methods "$METHOD"
    case $METHOD/$ROUND_ITR in
        delt/*|*/|*/0|*/"$ITR") ;;
        *) echo "METHOD=$METHOD with rounds of ROUND_ITR=$ROUND_ITR iterations; ROUND_ITR= leaves this to the recipe" ;;
    esac
fi
needs_of "$METHOD"
[ -n "$ITR" ] || [ -z "$MOST_ITR" ] || [ "$NEEDS_ITERATIONS" -le "$MOST_ITR" ] || ITR=$MOST_ITR
iterations=${ITR:-$NEEDS_ITERATIONS} of_a_round=${ROUND_ITR:-$NEEDS_ROUND_ITERATIONS}
if wants recover && [ "$NEEDS_RECOVERS" = true ] && [[ $RECOVER_ARGS != *iterations* ]]; then
    case $iterations/$of_a_round in
        *[!0-9/]*) ;;
        */*[1-9]*) [ "$((10#$iterations % 10#$of_a_round))" -eq 0 ] ||    # 08 is no octal number
            fail "ROUND_ITR: rounds of $of_a_round iterations do not divide the $iterations of ITR; 0 is one round" ;;
    esac
fi
if [ "$NEEDS_RECOVERS" = false ]; then
    skip recover "the images of $METHOD are those that it selects"
    [ -z "$SYN_PATH" ] || [ "${OUTPUT_DIR:-$SYN_PATH}" = "$SYN_PATH" ] ||
        fail "OUTPUT_DIR and SYN_PATH: the images that $METHOD selects are the synthetic ones; set one of them"
    OUTPUT_DIR=${OUTPUT_DIR:-$SYN_PATH}
fi
OUTPUT_DIR=${OUTPUT_DIR:-$RUN_DIR/init}
if [ "$NEEDS_RECOVERS" = false ]; then SYN_PATH=$OUTPUT_DIR; else SYN_PATH=${SYN_PATH:-$RUN_DIR/syn}; fi
# A set that is there already has the name of what made it, or one that is no method's.
if wants validate && ! wants recover; then
    made=$("$PYTHON_BIN" -m recover.methods --made "$SYN_PATH" 2> /dev/null) ||
        broken "$?" recover.methods --made "$SYN_PATH"
    if [ -z "$named" ] && [ -n "$made" ]; then
        METHOD=$made
        needs_of "$METHOD"
    elif [ -n "$made" ] && [ "$made" != "$METHOD" ]; then
        [ "$NEEDS_KNOWN" = false ] ||
            fail "METHOD: $SYN_PATH was made by $made, not by $METHOD: set DELT_METHOD=$made, or a name of your own"
    fi
fi
case $INIT in
    noise) NEEDS_RANKING= ;;
    images) NEEDS_RANKING=${NEEDS_RANKING:---criterion medium} ;;
esac
start=$(with_criterion "$CRITERION" $NEEDS_RANKING)
[ "$SYN_PATH" != "$OUTPUT_DIR" ] || leave_out selection "the images of $METHOD are those"
if [ -n "$start" ] && wants validate && ! wants ranking && [[ " $BASELINES " == *" selection "* ]]; then find_start; fi
if [ -z "$start" ]; then
    skip ranking "$METHOD starts from noise"
    leave_out selection "$METHOD starts from noise"
    for place in "$TRAIN_DIR" "$OUTPUT_DIR"; do    # which names the classes
        [ -n "$INIT_PATH" ] || [ ! -d "$place" ] || INIT_PATH=$place
    done
elif [ -n "$INIT_PATH" ] && [ "$INIT_PATH" != "$OUTPUT_DIR" ] && wants recover && [ "$NEEDS_RECOVERS" = true ] &&
    [[ " $BASELINES " != *" selection "* ]]; then
    skip ranking "INIT_PATH names the starting images"
elif [[ " $BASELINES " == *" $(start_name $start) "* ]]; then
    leave_out selection "it is $(start_name $start), which BASELINES names"
fi
[ -z "$start" ] || INIT_PATH=${INIT_PATH:-$OUTPUT_DIR}
[[ $BASELINES != *[![:space:]]* ]] ||
    check_ranking_args "CRITERION, IPC or METHOD, or INIT_PATH to images of another selection, or BASELINES to nothing"
find_kinds
[ ${#kinds[@]} -gt 0 ] || drop statistics
if wants statistics && [ -n "$NEEDS_MISSING" ]; then fail "METHOD: $METHOD needs the package $NEEDS_MISSING"; fi
PROTOCOL=" $PROTOCOL "
PROTOCOL=${PROTOCOL// own / $NEEDS_PROTOCOL }
if wants validate; then
    known PROTOCOL validate.protocols $PROTOCOL
    known BASELINES ranking.criteria $criteria
fi
[ "$NNODES" = 1 ] || [ -n "$MASTER_ADDR" ] ||
    fail "NNODES=$NNODES: set MASTER_ADDR to the machine where all of them meet (scripts/slurm does)"
find_teachers
if [ -n "$ready" ]; then
    skip squeeze "$ready"
elif wants squeeze; then
    check_training
else
    require_teachers "no teacher at" "set RANKER_PATH to a checkpoint, or put squeeze into DELT_STAGES"
fi
files=()    # of statistics
for kind in ${kinds[@]+"${kinds[@]}"}; do
    for number in "${!archs[@]}"; do
        files+=("$(collected_file "$RUN_DIR" "$kind" "$number")")
        wants statistics || ! wants recover || [ -f "${files[${#files[@]} - 1]}" ] ||
            fail "no file ${files[${#files[@]} - 1]}, which $METHOD reads: put statistics into DELT_STAGES"
    done
done

check_classes
if wants squeeze || wants statistics || wants ranking; then folder TRAIN_DIR "the folder of real training images"; fi
if wants squeeze || wants validate; then folder VAL_DIR "the folder of real test images"; fi
if wants validate && [ -n "$criteria" ]; then
    folder TRAIN_DIR "the folder of real training images, or BASELINES to nothing"
fi

begin_estimate --method "$METHOD" --protocol $PROTOCOL --stages $STAGES --sets "$(($(wc -w <<< "$BASELINES") + 1))"
option --iterations "$ITR"
option --round-iterations "$ROUND_ITR"
show_estimate
for stage in $STAGES; do
    "stage_$stage"
done
