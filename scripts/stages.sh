# Sourced by distill.sh and compare.sh, after common.sh: the variables of every stage, and the functions that make a
# stage's command line piece by piece and start it.

# every stage
SEED=${SEED:-0}
DEVICE=${DEVICE:-auto}
PRECISION=${PRECISION:-auto}               # auto, fp32, bf16 or fp16
COMPILE=${COMPILE:-auto}                   # auto, on or off
DETERMINISTIC=${DETERMINISTIC:-}           # off: a GPU need not repeat the same bytes
WORKERS=${WORKERS:-}                       # processes that load images
TFLOPS=${TFLOPS:-}                         # for the estimate: the rate of matrix products that was measured here

# further arguments of a stage, as they stand
SQUEEZE_ARGS=${SQUEEZE_ARGS:-}
STATISTICS_ARGS=${STATISTICS_ARGS:-}       # of squeeze.statistics and squeeze.barycenters, for methods that read them
BARYCENTERS_ARGS=${BARYCENTERS_ARGS:-}
RANKING_ARGS=${RANKING_ARGS:-}             # of every selection, also of the baselines
RECOVER_ARGS=${RECOVER_ARGS:-}
VALIDATE_ARGS=${VALIDATE_ARGS:-}

launcher() { :; }    # MODULE: adds to the line what starts a stage in several processes

# begin, option and run make a stage's command line, piece by piece, and start it.
begin() {
    line=("$PYTHON_BIN")
    launcher "$1"
    line+=(-m "$1")
    option --dataset "$DATASET"
    option --seed "$SEED"
    machine_options
}

machine_options() {    # of all that computes
    option --device "$DEVICE"
    option --precision "$PRECISION"
    option --compile "$COMPILE"
    option --deterministic "$DETERMINISTIC"
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
    supervised "${line[@]}"
}

# The checkpoint of an epoch beside that of the last one, as squeeze names it.
of_epoch() {    # EPOCH CHECKPOINT
    if [ -n "$1" ]; then echo "${2%.*}.epoch$1.${2##*.}"; else echo "$2"; fi
}

teacher_flags() {    # EPOCH FIRST COUNT: the networks of an epoch of COUNT teachers
    local number
    line+=(--teacher-arch "${archs[@]:$2:$3}")
    option --classes "$CLASSES"
    [ "$RANKER_PATH" != torchvision ] || return 0
    line+=(--teacher-path)
    for ((number = $2; number < $2 + $3; number++)); do
        line+=("$(of_epoch "$1" "${teachers[$number]}")")
    done
}

train_teacher() {    # NUMBER
    begin squeeze
    option --train-dir "$TRAIN_DIR"
    option --val-dir "$VAL_DIR"
    option --arch "${archs[$1]}"
    option --output "${teachers[$1]}"
    option --epochs "$SQUEEZE_EPOCHS"
    [ -z "$KEEP_EPOCHS" ] || line+=(--keep-epochs $KEEP_EPOCHS)
    line+=($SQUEEZE_ARGS)
    run
}

# What METHOD reads of the real images, by needs_of: sets kinds to the modules of squeeze that make the files.
find_kinds() {
    kinds=()
    [ -z "$NEEDS_STATISTICS" ] || kinds+=(statistics)
    [ "$NEEDS_BARYCENTERS" = false ] || kinds+=(barycenters)
}

collected_file() {    # DIR KIND NUMBER: of a teacher
    echo "$1/$2/$3-${archs[$3]//\//_}.safetensors"
}

collect() {    # DIR KIND NUMBER
    begin "squeeze.$2"
    option --train-dir "$TRAIN_DIR"
    teacher_flags "$TEACHER_EPOCH" "$3" 1
    option --output "$(collected_file "$1" "$2" "$3")"
    case $2 in
        statistics) line+=($NEEDS_STATISTICS $STATISTICS_ARGS) ;;
        barycenters) line+=(--ipc "$IPC" $BARYCENTERS_ARGS) ;;
    esac
    run
}

select_images() {    # OUTPUT_DIR RANKING_FILE FLAG...
    begin ranking
    option --train-dir "$TRAIN_DIR"
    teacher_flags "$TEACHER_EPOCH" 0 1
    option --ranking-file "$2"
    option --output-dir "$1"
    option --ipc "$IPC"
    option --short-classes "$SHORT_CLASSES"
    line+=("${@:3}" $RANKING_ARGS)
    run
}

begin_recover() {    # METHOD INIT_DIR SYN_DIR COUNT: by the first COUNT teachers
    begin recover
    option --method "$1"
    option --init-dir "$2"
    option --syn-dir "$3"
    option --classes-by "$CLASSES_BY"
    teacher_flags "$TEACHER_EPOCH" 0 "$4"
    option --ipc "$IPC"
}

# Here and below, sets and names are arrays of the same length.
train_students() {    # COUNT PROTOCOL...: labelled by the first COUNT teachers
    begin validate
    line+=(--syn-dir "${sets[@]}" --method "${names[@]}")
    option --val-dir "$VAL_DIR"
    option --classes-by "$CLASSES_BY"
    teacher_flags "$LABEL_EPOCH" 0 "$1"
    line+=(--student-arch $STUDENT --protocol "${@:2}")
    option --output-dir "$RUN_DIR"
    option --epochs "$VAL_EPOCHS"
    option --seeds "$SEEDS"
    line+=($VALIDATE_ARGS)
    run
}

measure_diversity() {    # OUTPUT_DIR
    line=("$PYTHON_BIN" -m validate.report.diversity "${sets[@]}" --method "${names[@]}")
    option --dataset "$DATASET"
    machine_options
    option --classes-by "$CLASSES_BY"
    teacher_flags "$TEACHER_EPOCH" 0 1
    option --output-dir "$1"
    run
}

# begin_estimate, option and show_estimate say what is to be expected, where the data set and the networks are known: a
# line a stage. Arithmetic alone.
begin_estimate() {    # FLAG...
    line=("$PYTHON_BIN" -m benchmarks.estimate)
    option --dataset "$DATASET"
    option --train-dir "$TRAIN_DIR"    # read where the data set does not say how many images there are
    option --val-dir "$VAL_DIR"
    line+=(--ipc "$IPC" --seeds "$SEEDS" --teacher-arch "${archs[@]}" --student $STUDENT "$@")
    option --squeeze-epochs "$SQUEEZE_EPOCHS"
    option --val-epochs "$VAL_EPOCHS"
    option --tflops "$TFLOPS"
    [ "$DEVICE" != cpu ] || line+=(--card cpu)
}

show_estimate() {
    "${line[@]}" 2> /dev/null || true
}

# What can be known to be wrong is said now, not in the middle of hours of work.
known() {    # VARIABLE MODULE WORD...: the registry of the module knows these words
    local message variable=$1 module=$2
    shift 2
    [ $# -gt 0 ] || return 0
    message=$("$PYTHON_BIN" -m "$module" "$@" 2>&1 > /dev/null | tail -n 1) || fail "$variable: ${message#error: }"
}

broken() {    # CODE MODULE WORD...: a module that is asked something ended with that code, as it is not to
    fail "python -m ${*:2} ended with exit code $1: $("$PYTHON_BIN" -m "${@:2}" 2>&1 > /dev/null | tail -n 1)"
}

folder() {    # VARIABLE WHAT
    local hint="set $1 to $2"
    [ -z "$DATASET" ] || hint="run 'bash scripts/prepare_data.sh $DATASET', or $hint"
    [ -n "${!1}" ] || fail "$1 is empty: $hint"
    [ -d "${!1}" ] || fail "$1: no folder ${!1} (relative paths count from the repository's root): $hint"
}

check_classes() {
    [ -z "$CLASSES" ] || [ -f "$CLASSES" ] ||
        fail "CLASSES: no file $CLASSES (relative paths count from the repository's root): one class folder name a line"
    case $CLASSES_BY in
        ''|name|position) ;;
        *) fail "CLASSES_BY: '$CLASSES_BY' is none of: name position" ;;
    esac
}

check_numbers() {
    need_number NPROC 1
    need_number IPC 1
    need_number SEEDS 1
    [ -z "$VAL_EPOCHS" ] || need_number VAL_EPOCHS 1
}

refuse_words() {    # VARIABLE WHY FLAG...: these are not to be among the further arguments of a stage
    local word
    for word in ${!1}; do
        case " ${*:3} " in *" ${word%%=*} "*) fail "$1: ${word%%=*} $2" ;; esac
    done
}

# What is selected with RANKING_ARGS has to remain what it is called: baselines, and the start where it is measured.
check_ranking_args() {    # ADVICE
    refuse_words RANKING_ARGS "would also change the images of the baselines: set $1" \
        --criterion --ipc --candidates --crops --tiles
}

# What METHOD needs besides recover: NEEDS_RANKING and NEEDS_STATISTICS are flags of these stages (of ranking none for a
# start from noise); NEEDS_BARYCENTERS and NEEDS_RECOVERS are true or false; NEEDS_PROTOCOL is that of its own students,
# NEEDS_TEACHERS one or several; NEEDS_ITERATIONS and NEEDS_ROUND_ITERATIONS are its recipe's; NEEDS_MISSING is a package
# that is not installed, and how to get it. Of images that are no method's of this project it is delt's, and NEEDS_KNOWN
# false.
needs_of() {    # METHOD
    local found code=0
    NEEDS_KNOWN=true
    NEEDS_RANKING="--criterion medium" NEEDS_STATISTICS= NEEDS_BARYCENTERS=false NEEDS_RECOVERS=true
    NEEDS_PROTOCOL=delt NEEDS_TEACHERS=one NEEDS_MISSING= NEEDS_ITERATIONS=0 NEEDS_ROUND_ITERATIONS=0
    found=$("$PYTHON_BIN" -m recover.methods --needs "$1" "${DATASET:-$TRAIN_DIR}" 2> /dev/null) || code=$?
    case $code in
        0) eval "$found" ;;
        2) NEEDS_KNOWN=false ;;
        *) broken "$code" recover.methods --needs "$1" "${DATASET:-$TRAIN_DIR}" ;;
    esac
    case " $RECOVER_ARGS " in
        *" --init images "*) NEEDS_RANKING=${NEEDS_RANKING:---criterion medium} ;;
        *" --init noise "*) NEEDS_RANKING= ;;
    esac
}

with_criterion() {    # CRITERION FLAG...: the flags of ranking, with another criterion if one is given
    local word last= words=()
    for word in "${@:2}"; do
        [ "$last" != --criterion ] || [ -z "$1" ] || word=$1
        words+=("$word")
        last=$word
    done
    echo "${words[@]:-${1:+--criterion $1}}"
}

start_name() {    # FLAG...: what to call the images that these flags of ranking select
    local words="$*"
    words=${words/--criterion /}
    echo "${words// --/ }"
}

# Sets archs to the architectures that TEACHERS names, teachers to their checkpoints of the last epoch (none for
# torchvision's weights), and ready to why they have not to be trained; empty if they have.
find_teachers() {
    local arch path
    archs=($TEACHERS) teachers=() ready=
    if [ "$RANKER_PATH" = torchvision ]; then
        ready="torchvision's weights of ${archs[*]} are the teacher"
        [ -z "$TEACHER_EPOCH$LABEL_EPOCH" ] ||
            fail "TEACHER_EPOCH, LABEL_EPOCH: torchvision has no weights of single epochs"
    elif [ -n "$RANKER_PATH" ]; then
        teachers=("$RANKER_PATH")
        [ ${#archs[@]} -eq 1 ] || teachers=($RANKER_PATH)
        [ ${#archs[@]} -eq ${#teachers[@]} ] ||
            fail "RANKER_PATH: names ${#teachers[@]} checkpoints for the ${#archs[@]} TEACHERS: set it to one for each"
        ready="RANKER_PATH gives the teacher"
        require_teachers "RANKER_PATH: no file" "set it to a teacher's checkpoint (the stage squeeze trains one)"
    elif [ ${#archs[@]} -eq 1 ]; then
        teachers=("$RUN_DIR/teacher.pth")
    else
        for arch in "${archs[@]}"; do
            path=$RUN_DIR/teachers/${arch//\//_}.pth
            case " ${teachers[*]-} " in *" $path "*) fail "TEACHERS: names $arch twice" ;; esac
            teachers+=("$path")
        done
    fi
}

require_teachers() {    # WHAT ADVICE
    local path epoch found
    for path in ${teachers[@]+"${teachers[@]}"}; do
        for epoch in "$TEACHER_EPOCH" "$LABEL_EPOCH"; do
            found=$(of_epoch "$epoch" "$path")
            [ -f "$found" ] || fail "$1 $found: $2"
        done
    done
}

# What squeeze is about to train: known architectures, and the epochs that are asked for.
check_training() {
    local epoch
    [ ${#archs[@]} -eq 1 ] || known TEACHERS utils.nets.models "${archs[@]}"
    for epoch in $TEACHER_EPOCH $LABEL_EPOCH; do
        case " $KEEP_EPOCHS " in *" $epoch "*) ;; *) fail "TEACHER_EPOCH, LABEL_EPOCH: KEEP_EPOCHS has no $epoch" ;; esac
    done
}
