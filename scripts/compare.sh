#!/usr/bin/env bash
# Makes the sets of several methods, and measures them side by side: the same teacher, protocols, updates and seeds for
# all, beside random real images, coresets and the images that the methods start from. Ends with the page and one table.
#
#   bash scripts/compare.sh                                      # the quickstart's images
#   DATASET=cifar10 DELT_ARCH=conv3 METHODS="delt rded" bash scripts/compare.sh
#
# Each variable below can be set in the environment; ARCH NAME SEED DEVICE WORKERS NPROC are taken from DELT_ARCH and so
# on, as in scripts/distill.sh. scripts/stages.sh has those of every stage. The same command goes on where it was
# stopped: what is finished is skipped. Started several times, on any machines that share RUN_DIR, its cells are shared.
# A method that cannot run is named in the end, and the others go on; the exit code is then 1.
set -euo pipefail
set -f    # the lists and the *_ARGS are split into words, and nothing more
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$ROOT"

NAME=${NAME:-compare}                      # of the run: runs/NAME
RUN_DIR=${RUN_DIR:-runs/$NAME}             # everything that the run writes; report/ is what to look at

# The real images: of a known data set, or your own; the quickstart's, with its few epochs, if none of these is set
if [ -z "${DATASET:-}${TRAIN_DIR:-}${VAL_DIR:-}" ]; then
    ARCH=${ARCH:-conv3}
    SQUEEZE_EPOCHS=${SQUEEZE_EPOCHS:-4}
    SQUEEZE_ARGS=${SQUEEZE_ARGS---batch-size 64 --crop-padding 0}
    ITR_SHARE=${ITR_SHARE:-0.05}
    VAL_EPOCHS=${VAL_EPOCHS:-60}
    DATASET=fashion_mnist_cut
    EMBEDDED=$RUN_DIR/data
fi
EMBEDDED=${EMBEDDED-}
DATASET=${DATASET:-}
images=${EMBEDDED:-${DATASET:+data/$DATASET}}
TRAIN_DIR=${TRAIN_DIR:-${images:+$images/train}}
VAL_DIR=${VAL_DIR:-${images:+$images/val}}

# The teacher, or several
ARCH=${ARCH:-resnet18}                     # the teacher's architecture
TEACHERS=${TEACHERS:-$ARCH}                # several: all recover where a method takes several, the first one elsewhere
RANKER_PATH=${RANKER_PATH:-}               # a checkpoint for each; torchvision: its ImageNet weights; empty: train them
SQUEEZE_EPOCHS=${SQUEEZE_EPOCHS:-}
KEEP_EPOCHS=${KEEP_EPOCHS:-}               # the networks of these epochs are kept, too
TEACHER_EPOCH=${TEACHER_EPOCH:-}           # a kept epoch, whose networks rank and recover; empty: the last one
LABEL_EPOCH=${LABEL_EPOCH-$TEACHER_EPOCH}  # a kept epoch, whose networks label
CLASSES=${CLASSES:-}                       # a file of the class folders' names in label order, for a teacher without
LABELLERS=${LABELLERS:-1}                  # how many of TEACHERS label, the first ones

# What is made
METHODS=${METHODS:-}                       # python -m recover.methods lists them; empty: all
IPC=${IPC:-10}                             # images per class
ITR_SHARE=${ITR_SHARE:-1}                  # of each method's iterations
BASELINES=${BASELINES-random herding k-center}    # real images by these criteria
STARTS=${STARTS-yes}                       # yes: also the images that methods start from, unrecovered
SHORT_CLASSES=${SHORT_CLASSES:-}           # classes with fewer images than IPC: error, repeat or keep

# How it is measured
STUDENT=${STUDENT:-${TEACHERS%% *}}        # one architecture or several
PROTOCOLS=${PROTOCOLS:-delt hard}          # python -m validate.protocols lists them; own: of each method its own
VAL_EPOCHS=${VAL_EPOCHS:-}                 # the protocol's if empty
SEEDS=${SEEDS:-3}                          # students of each kind, from SEED on

NPROC=${NPROC:-1}                          # cells at a time on this machine: one for each GPU, or more (docs/speed.md)

source scripts/stages.sh

# They are those of all methods and protocols: what one of these does not read is left out there.
RECOVER_ARGS=${RECOVER_ARGS:+--shared $RECOVER_ARGS}
VALIDATE_ARGS=${VALIDATE_ARGS:+--shared $VALIDATE_ARGS}

# Where run is called, a cell joins the list: its name, the file that it leaves, and the cells that come before it.
cells=()
cell() {    # NAME OUTPUT NEED...
    cell=$1 output=$2 needs="${*:3}"
}

run() {
    cells+=("$cell" "$output" "$needs" ${#line[@]} "${line[@]}")
    known_cells+=" $cell "
}
known_cells=

is_cell() {    # NAME
    case $known_cells in *" $1 "*) return 0 ;; *) return 1 ;; esac
}

# Sets start_cell and start_dir to the selection by these flags of ranking, which all that start alike share.
select_start() {    # FLAG...
    start_cell=$(start_name "$@")
    start_cell=starts/${start_cell// /_}
    start_dir=$RUN_DIR/$start_cell
    is_cell "$start_cell" && return 0
    cell "$start_cell" "$start_dir/manifest.json" $real ${trained[0]-}
    select_images "$start_dir" "" "$@"    # each scores for itself, so that its seconds are what it takes
}

# Adds the files that a method reads of the real images to files, those of the first COUNT teachers, and what makes them
# to before. Methods that ask for the same ones share them.
collect_all() {    # COUNT
    local kind number key
    find_kinds
    for kind in ${kinds[@]+"${kinds[@]}"}; do
        key=$kind
        [ "$kind" != statistics ] || key=$(echo "$kind $NEEDS_STATISTICS" | tr -s ' -' _)
        for ((number = 0; number < $1; number++)); do
            files+=("$(collected_file "$RUN_DIR/$key" "$kind" "$number")")
            before+=" $key/$number"
            is_cell "$key/$number" && continue
            cell "$key/$number" "${files[${#files[@]} - 1]}" $real ${trained[$number]-}
            collect "$RUN_DIR/$key" "$kind" "$number"
        done
    done
}

# Adds a set to those that are measured, unless its images are one of them under another name.
add_set() {    # NAME DIR CELL PROTOCOL...
    local folder
    for folder in ${set_dirs[@]+"${set_dirs[@]}"}; do
        [ "$folder" != "$2" ] || return 0
    done
    set_names+=("$1") set_dirs+=("$2") set_cells+=("$3") set_protocols+=("${*:4}")
}
set_names=() set_dirs=() set_cells=() set_protocols=()

make_set() {    # METHOD
    local init=$TRAIN_DIR before= count=1 number files=()    # for a start from noise the folder names the classes
    needs_of "$1"
    own=$NEEDS_PROTOCOL own_protocols+=" $own"
    if [ -n "$NEEDS_RANKING" ]; then
        select_start $NEEDS_RANKING
        init=$start_dir before=$start_cell
    fi
    if [ "$NEEDS_RECOVERS" = false ]; then
        add_set "$1" "$init" "$start_cell" $(of_own "$own")
        return
    fi
    [ "$NEEDS_TEACHERS" != several ] || count=${#archs[@]}
    for ((number = 0; number < count; number++)); do
        before+=" ${trained[$number]-}"
    done
    collect_all "$count"
    cell "sets/$1" "$RUN_DIR/sets/$1/manifest.json" $real $before
    begin_recover "$1" "$init" "$RUN_DIR/sets/$1" "$count"
    [ ${#files[@]} -eq 0 ] || line+=(--statistics "${files[@]}")
    [ "$ITR_SHARE" = 1 ] || option --iterations-share "$ITR_SHARE"
    line+=($RECOVER_ARGS)
    run
    add_set "$1" "$RUN_DIR/sets/$1" "sets/$1" $(of_own "$own")
    if [ -n "$NEEDS_RANKING" ]; then starts+=("$NEEDS_RANKING"); fi
}
starts=() own_protocols=

# METHODS; all if it is empty, but those that need a package which is not here: it is said now, and in the end.
find_methods() {
    local method methods found=
    methods=${METHODS:-$("$PYTHON_BIN" -m recover.methods 2> /dev/null)} || broken "$?" recover.methods
    for method in $methods; do
        needs_of "$method"
        if [ -z "$NEEDS_MISSING" ]; then
            found+="$method "
        elif [ -n "$METHODS" ]; then
            fail "METHODS: $method needs the package $NEEDS_MISSING"
        else
            left_out+=("$method is left out: it needs the package $NEEDS_MISSING")
        fi
    done
    METHODS=$found
    say_left_out
}
left_out=()

say_left_out() {
    [ ${#left_out[@]} -eq 0 ] || printf '%s\n' "${left_out[@]}"
}

of_own() {    # OWN...: PROTOCOLS with these in the place of own, each once
    local protocol found=" "
    for protocol in $PROTOCOLS; do
        [ "$protocol" != own ] || protocol="$*"
        for protocol in $protocol; do
            case $found in *" $protocol "*) ;; *) found+="$protocol " ;; esac
        done
    done
    echo $found
}

# What distill.sh reads, and this does not: here each method has its recipe, and its start.
for name in METHOD LR INIT STAGES; do
    [ -z "${!name:-}" ] || IGNORED+=" DELT_$name"
done
for name in CRITERION RANKING_FILE OUTPUT_DIR INIT_PATH SYN_PATH ITR MOST_ITR ROUND_ITR R_BN FIRST_BN_MULTIPLIER \
    JITTER CURRICULUM MILESTONE MIN_CROP BATCH_BY IMAGE_FORMAT RECOVER_BATCH CLASSES_BY NNODES MAX_RESTARTS; do
    [ -z "${!name:-}" ] || IGNORED+=" $name"
done
CLASSES_BY=    # every set is made here, with the names that it needs
[ -z "${PROTOCOL:-}" ] || IGNORED+=" PROTOCOL (PROTOCOLS is read)"
[ -z "$IGNORED" ] || echo "not taken from the environment:$IGNORED"
check_numbers
need_number LABELLERS 0
refuse_words RECOVER_ARGS "would make one set for all METHODS: set METHODS" --method
refuse_words RECOVER_ARGS "would put the sets of all METHODS into one folder: set RUN_DIR" --syn-dir
[ -z "$BASELINES$STARTS" ] || check_ranking_args "METHODS, BASELINES or IPC"
need_packages
known DATASET utils.data.datasets $DATASET
known METHODS recover.methods $METHODS
find_methods
known PROTOCOLS validate.protocols $(of_own)
known BASELINES ranking.criteria $BASELINES
case $STARTS in yes|"") ;; *) fail "STARTS: '$STARTS' is neither yes nor empty" ;; esac
if [ -z "$EMBEDDED" ]; then
    folder TRAIN_DIR "the folder of real training images"
    folder VAL_DIR "the folder of real test images"
fi
find_teachers
[ -n "$ready" ] || check_training
check_classes
[ "$LABELLERS" -ge 1 ] && [ "$LABELLERS" -le ${#archs[@]} ] ||
    fail "LABELLERS: 1 to ${#archs[@]}, the number of TEACHERS, and not $LABELLERS"

# --- the cells ---

real=    # the cell that makes the real images, if one does
if [ -n "$EMBEDDED" ]; then
    real=images
    cell images "$VAL_DIR"
    line=("$PYTHON_BIN" -m utils.data.prepare "$DATASET" --output "$EMBEDDED")
    run
fi

trained=()    # the cells that train the teachers
if [ -z "$ready" ]; then
    for number in "${!archs[@]}"; do
        trained+=("teachers/${archs[$number]//\//_}")
        cell "${trained[$number]}" "${teachers[$number]}" $real
        train_teacher "$number"
    done
fi

for method in $METHODS; do
    make_set "$method"
done
for baseline in $BASELINES; do
    select_start --criterion "$baseline"
    add_set "$baseline" "$start_dir" "$start_cell" $(of_own $own_protocols)
done
if [ -n "$STARTS" ]; then
    for start in ${starts[@]+"${starts[@]}"}; do
        select_start $start
        add_set "$(start_name $start)" "$start_dir" "$start_cell" $(of_own)
    done
fi

# The result of the first student, in the name that validate gives it; the end of that is a digest.
result_file() {    # METHOD PROTOCOL
    local name="$1_${STUDENT%% *}_$2_"
    [ -z "$VALIDATE_ARGS" ] || name="$1_"    # these may make it another protocol's, or another student's
    name=${name//[^[:alnum:]_.-]/_}
    echo "$RUN_DIR/results/${name:0:120}*.json"    # validate shortens what is longer
}

measured= measurements=    # what the page waits for, whether it fails or not; and the protocol of each of these
for number in "${!set_names[@]}"; do
    names=("${set_names[$number]}") sets=("${set_dirs[$number]}")
    key=${set_cells[$number]#*/}
    for protocol in ${set_protocols[$number]}; do
        measurements+=" $protocol"
        cell "students/$key/$protocol" "$(result_file "${set_names[$number]}" "$protocol")" \
            "${set_cells[$number]}" ${trained[@]+"${trained[@]}"}
        train_students "$LABELLERS" "$protocol"
        measured+=" ?$cell"
    done
    if [ "$IPC" -gt 1 ]; then    # one image is no pair
        cell "diversity/$key" "$RUN_DIR/diversity/$key/diversity.csv" "${set_cells[$number]}" ${trained[0]-}
        measure_diversity "$RUN_DIR/diversity/$key"
        measured+=" ?$cell"
    fi
done
cell page "$RUN_DIR/report/report.html" $measured
line=("$PYTHON_BIN" -m validate.report "$RUN_DIR")
run

stages="ranking statistics recover validate"
[ ${#trained[@]} -eq 0 ] || stages="squeeze $stages"
begin_estimate --method $METHODS --baselines $BASELINES --protocol $measurements --sets 1 --stages $stages
option --iterations-share "$ITR_SHARE"
option --labellers "$LABELLERS"
show_estimate

inputs=()    # what no cell makes: where it changes, what was made of it is made again, or says what differs
[ -n "$real" ] || inputs+=("$TRAIN_DIR" "$VAL_DIR")
[ -z "$CLASSES" ] || inputs+=("$CLASSES")
if [ -n "$ready" ] && [ "$RANKER_PATH" != torchvision ]; then
    for number in "${!archs[@]}"; do
        for epoch in "$TEACHER_EPOCH" "$LABEL_EPOCH"; do
            inputs+=("$(of_epoch "$epoch" "${teachers[$number]}")")
        done
    done
fi

code=0
supervised "$PYTHON_BIN" -m utils.run.cells "$RUN_DIR/cells" --workers "$NPROC" \
    --inputs ${inputs[@]+"${inputs[@]}"} < <(printf '%s\0' "${cells[@]}") ||
    code=$?
[ "$code" -le 1 ] || exit "$code"
if [ -f "$RUN_DIR/results.csv" ]; then "$PYTHON_BIN" -m validate.report.comparison "$RUN_DIR"; fi
say_left_out
[ ${#left_out[@]} -eq 0 ] || code=1
exit "$code"
