//! Odd command lines of all commands, run beside the installed `qemu-img`: missing and repeated arguments, options in
//! clusters and cut short, conflicts, wrong values. Help and versions have texts of their own, and are left out.

mod released;
mod side;

use released::as_released;
use side::{Run, Side};

fn hold(table: &str) {
    let mut side = Side::new();
    for line in ["create -q r 1M", "create -q -f qcow2 q 1M", "create -q -f qcow2 q2 1M"] {
        side.make(line);
    }
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let theirs = side.theirs(line);
        let theirs = Run { stderr: as_released(&theirs.stderr), ..theirs };
        let ours = side.ours(line);
        side.expect_alike(line, &without_times(ours), &without_times(theirs));
    }
    side.finish();
}

/// How long a benchmark took is nobody's words.
fn without_times(run: Run) -> Run {
    let lines = run.stdout.split_inclusive('\n').filter(|line| !line.starts_with("Run completed in"));
    let stdout = lines.collect();
    Run { stdout, ..run }
}

#[test]
fn info() {
    hold(INFO);
}

#[test]
fn check() {
    hold(CHECK);
}

#[test]
fn map() {
    hold(MAP);
}

#[test]
fn compare() {
    hold(COMPARE);
}

#[test]
fn create() {
    hold(CREATE);
}

#[test]
fn convert() {
    hold(CONVERT);
}

#[test]
fn bench() {
    hold(BENCH);
}

#[test]
fn snapshot() {
    hold(SNAPSHOT);
}

#[test]
fn resize() {
    hold(RESIZE);
}

#[test]
fn amend() {
    hold(AMEND);
}

#[test]
fn tool() {
    hold(TOOL);
}

/// One command line a line; `_` is an empty word.
const INFO: &str = r#"
    info
    info -T
    info -T foo
    info --trace
    info --
    info -- -h
    info --foo
    info --foo=bar
    info -Z
    info -f
    info --format
    info --format=
    info -f raw
    info -fraw r
    info -f=raw r
    info --format=raw r
    info --form raw r
    info --fo raw r
    info -f raw -f qcow2 r
    info --quiet r
    info --qui r
    info -q -q r
    info --object
    info --object foo r
    info --object secret,id=s r
    info --image-opts
    info --image-opts r
    info --image-opts driver=raw,file.filename=r
    info --image driver=raw,file.filename=r
    info --image-opts -f raw driver=raw,file.filename=r
    info -U r
    info --force-share r
    info --force r
    info -U -U r
    info r -U
    info -- r
    info r --
    info -
    info r r r r
    info --output
    info --output=xml r
    info --output=json r
    info --output json r
    info --out=json r
    info --output=human --output=json q
    info --output=json --output=human q
    info --backing-chain q
    info --backing q
    info --back q
    info -b q
    info -c q
    info q r
    info -f qcow2 q
    info -f qcow2 r
    info -p q
    info --progress q
    info
"#;

const CHECK: &str = r#"
    check
    check -T
    check -T foo
    check --trace
    check --
    check -- -h
    check --foo
    check --foo=bar
    check -Z
    check -f
    check --format
    check --format=
    check -f raw
    check -fraw r
    check -f=raw r
    check --format=raw r
    check --form raw r
    check --fo raw r
    check -qfraw r
    check -f raw -f qcow2 r
    check --quiet r
    check --qui r
    check -q -q r
    check --object
    check --object foo r
    check --object secret,id=s r
    check --image-opts
    check --image-opts r
    check --image-opts driver=raw,file.filename=r
    check --image driver=raw,file.filename=r
    check --image-opts -f raw driver=raw,file.filename=r
    check -U r
    check --force-share r
    check --force r
    check -U -U r
    check r -U
    check -- r
    check r --
    check -
    check r r r r
    check --output
    check --output=xml q
    check --output=json q
    check -q q
    check -q r
    check -f raw r
    check -f qcow2 q
    check -r
    check -r foo q
    check -r= q
    check --repair=foo q
    check --rep=foo q
    check -T
    check -T none q
    check -T foo q
    check -T off q
    check -T directsync q
    check -T unsafe q
    check -T writethrough q
    check -Tunsafe q
    check --cache=none q
    check --cac=foo q
    check -t none q
    check -Uq q
    check q r
"#;

const MAP: &str = r#"
    map
    map -T
    map -T foo
    map --trace
    map --
    map -- -h
    map --foo
    map --foo=bar
    map -Z
    map -f
    map --format
    map --format=
    map -f raw
    map -fraw r
    map -f=raw r
    map --format=raw r
    map --form raw r
    map --fo raw r
    map -f raw -f qcow2 r
    map --quiet r
    map --qui r
    map -q -q r
    map --object
    map --object foo r
    map --object secret,id=s r
    map --image-opts
    map --image-opts r
    map --image-opts driver=raw,file.filename=r
    map --image driver=raw,file.filename=r
    map --image-opts -f raw driver=raw,file.filename=r
    map -U r
    map --force-share r
    map --force r
    map -U -U r
    map r -U
    map -- r
    map r --
    map -
    map r r r r
    map --output
    map --output=xml q
    map --output=json q
    map --start-offset
    map --start-offset=foo q
    map --start-offset=1M q
    map --start-offset=2M q
    map --start-offset=64k --output=json q
    map -s 64k --output=json q
    map -s q
    map -l 64k --output=json q
    map --max-length=64k --output=json q
    map --max-length=0 --output=json q
    map --max-length=0 q
    map --max-length=-1 q
    map --max=64k --output=json q
    map --start=512 --output=json q
    map --start-offset=1 --output=json r
    map --start-offset=1023k --max-length=1M --output=json r
    map --start-offset=1M --output=json r
    map --start-offset=5M --output=json r
    map --start-offset=1.5k --output=json r
    map --start-offset=0x200 --output=json r
    map --max-length=8E --output=json r
    map --max-length=7E --output=json r
    map q r
    map -q q
"#;

const COMPARE: &str = r#"
    compare
    compare -T
    compare -T foo
    compare --trace
    compare --
    compare -- -h
    compare --foo
    compare --foo=bar
    compare -Z
    compare -f
    compare --format
    compare --format=
    compare -f raw
    compare --object
    compare --image-opts
    compare --image-opts driver=raw,file.filename=r
    compare --image driver=raw,file.filename=r
    compare --image-opts -f raw driver=raw,file.filename=r
    compare r -U
    compare r --
    compare -
    compare
    compare r
    compare r r r
    compare r q
    compare -s r q
    compare -p r q
    compare -ps r q
    compare -q r q
    compare -pq r q
    compare -f raw r q
    compare -F qcow2 r q
    compare -f raw -F qcow2 r q
    compare -f raw -F raw r q
    compare -F raw q q2
    compare -f qcow2 r q
    compare --a-format=raw r q
    compare --b-format=qcow2 r q
    compare --format=raw r q
    compare -T none r q
    compare -T foo r q
    compare -T
    compare --cache=none r q
    compare --strict r q
    compare --str r q
    compare --progress r q
    compare --image-opts driver=raw,file.filename=r driver=qcow2,file.filename=q
    compare --image-opts r q
    compare --image-opts driver=raw,file.filename=r q
    compare --image-opts -F qcow2 driver=raw,file.filename=r driver=qcow2,file.filename=q
    compare -U r q
    compare -Us r q
    compare -t none r q
    compare nope
    compare nope nope
    compare -f foo r q
    compare -F foo r q
    compare -- r q
    compare r -- q
    compare --output=json r q
"#;

const CREATE: &str = r#"
    create
    create -T
    create -T foo
    create --trace
    create --
    create -- -h
    create --foo
    create --foo=bar
    create -Z
    create -f
    create --format
    create --format=
    create -f raw
    create --object
    create --image-opts
    create --image-opts driver=raw,file.filename=r
    create --image driver=raw,file.filename=r
    create --image-opts -f raw driver=raw,file.filename=r
    create r -U
    create r --
    create -
    create
    create x
    create -f qcow2
    create -f qcow2 x
    create -f qcow2 x 1M 1M
    create -fqcow2 x 1M
    create -qf qcow2 x 1M
    create -q x 1M
    create -q -f foo x 1M
    create -o
    create -o help
    create -o ? x
    create -f qcow2 -o help x
    create -f qcow2 -o size=1M x
    create -f qcow2 -o size=1M x 2M
    create -f qcow2 -o cluster_size=64k,help x
    create -f qcow2 -o foo=1 x 1M
    create -f qcow2 -o foo x 1M
    create -f qcow2 -o , x 1M
    create -f qcow2 -o cluster_size x 1M
    create -f qcow2 -o cluster_size= x 1M
    create -f qcow2 -o lazy_refcounts x 1M
    create -f qcow2 -o nolazy_refcounts x 1M
    create -f qcow2 -o lazy_refcounts=maybe x 1M
    create -f qcow2 -o refcount_bits=foo x 1M
    create -f qcow2 -b q x
    create -f qcow2 -b q -F qcow2 x
    create -f qcow2 -b q -F qcow2 x 2M
    create -f qcow2 -b q -F qcow2 x 512k
    create -f qcow2 -b q -F qcow2 -u x
    create -f qcow2 -b q -F qcow2 -u x 1M
    create -f qcow2 -u x 1M
    create -f qcow2 -F qcow2 x 1M
    create -f qcow2 --backing=q --backing-format=qcow2 x
    create -f qcow2 --backing q -B qcow2 x
    create -b
    create -F
    create --options=size=1M x
    create --opt size=1M x
    create x 0
    create x -5
    create x +5
    create x 5
    create x 1k
    create x 1K
    create x 1.5M
    create x 1m
    create x 1kk
    create x 0x100000
    create x 1e6
    create x 1Mb
    create x 1b
    create x 513
    create x 1T
    create -f raw x 1M -q
    create -f qcow2 -- x 1M
    create -U x 1M
    create -p x 1M
    create --image-opts driver=raw,file.filename=x 1M
    create --object secret,id=s,data=abc -q x 1M
"#;

const CONVERT: &str = r#"
    convert
    convert -T
    convert -T foo
    convert --trace
    convert --
    convert -- -h
    convert --foo
    convert --foo=bar
    convert -Z
    convert -f
    convert --format
    convert --format=
    convert -f raw
    convert --object
    convert --image-opts
    convert --image-opts driver=raw,file.filename=r
    convert --image driver=raw,file.filename=r
    convert --image-opts -f raw driver=raw,file.filename=r
    convert r -U
    convert r --
    convert -
    convert
    convert r
    convert -O raw r
    convert -O foo r x
    convert -O
    convert -O raw r x
    convert -Oraw r x
    convert -O qcow2 r q2 x
    convert -f raw -O qcow2 r x
    convert -f foo r x
    convert -f qcow2 r x
    convert -c r x
    convert -c -O raw r x
    convert -c -O qcow2 r x
    convert -cO qcow2 r x
    convert -p r x
    convert -pO qcow2 r x
    convert -pq r x
    convert -S
    convert -S foo r x
    convert -S 1 r x
    convert -S 4k r x
    convert -S 0 r x
    convert -S 3k r x
    convert -S 8E r x
    convert -S -1 r x
    convert -m
    convert -m 0 r x
    convert -m 1 r x
    convert -m 16 r x
    convert -m 17 r x
    convert -m foo r x
    convert -W r x
    convert -C r x
    convert -C -S 0 r x
    convert -C -c -O qcow2 r x
    convert -n r x
    convert -n r nope
    convert -n -O qcow2 r q2
    convert -n -o size=1M r x
    convert -n -B q r x
    convert -o size=2M -O qcow2 r x
    convert -o help -O qcow2
    convert -o help
    convert -o foo=1 r x
    convert -B q r x
    convert -B q -F qcow2 -O qcow2 r x
    convert -B q -O qcow2 r x
    convert -B q -O raw r x
    convert -F qcow2 -O qcow2 r x
    convert -b q -F qcow2 -O qcow2 r x
    convert -l foo q x
    convert -l snapshot.id=1 q x
    convert -l snapshot.name= q x
    convert -l snapshot.foo=1 q x
    convert -l foo r x
    convert -s foo q x
    convert -t foo r x
    convert -T foo r x
    convert -t none -O qcow2 r x
    convert -t directsync r x
    convert -T none r x
    convert --target-is-zero r x
    convert --target-is-zero -n r x
    convert --target-image-opts r x
    convert --target-image-opts -n r driver=raw,file.filename=x
    convert --target-image-opts -O raw -n r driver=raw,file.filename=x
    convert --target-image-opts -n r x
    convert --image-opts driver=raw,file.filename=r x
    convert --image-opts r x
    convert --image-opts -f raw driver=raw,file.filename=r x
    convert -U r x
    convert --force-share r x
    convert --salvage r x
    convert --salvage -C r x
    convert --bitmaps r x
    convert --bitmaps q x
    convert --skip-broken-bitmaps r x
    convert -r r x
    convert -r 0 r x
    convert -r foo r x
    convert -r 1G r x
    convert --rate-limit=foo r x
    convert --source-format=raw r x
    convert --tar raw r x
    convert --parallel=4 r x
    convert -- r x
    convert r -- x
    convert r r
    convert x x
    convert r q2 r
    convert q x -f qcow2
    convert -i r x
    convert -e r x
    convert -6 r x
"#;

const BENCH: &str = r#"
    bench
    bench r r
    bench -c
    bench -c 0 r
    bench -c -1 r
    bench -c foo r
    bench -c 10k r
    bench -d 0 r
    bench -d foo r
    bench -d 100000000000 r
    bench -s 0 r
    bench -s foo r
    bench -s -1 r
    bench -s 3G r
    bench -o foo r
    bench -o -1 r
    bench -o 8E r
    bench -c 1 -o 1M r
    bench -c 1 -o 2M r
    bench -t
    bench -t foo r
    bench -i
    bench -i foo r
    bench -i native -c 1 r
    bench --pattern=foo -w -f raw r
    bench --pattern=256 -w -f raw r
    bench --pattern=-1 -w -f raw r
    bench --flush-interval=foo -w -f raw r
    bench --flush-interval=1 r
    bench --flush-interval=1 -w -f raw r
    bench --flush-interval=-1 -w -f raw r
    bench -w -U -c 1 -f raw r
    bench -f foo r
    bench -f qcow2 r
    bench --image-opts r
    bench -z r
    bench --aio=foo r
    bench -qc 1 r
    bench -q -c 1 -d 1 r
    bench -q -c 1 -s 512 -S 512 -o 512 r
    bench -q -c 10 --count=1 r
    bench -q -c 1 --pattern=1 r
    bench -q -c 1 -n r
    bench -q -c 1 -t none r
    bench -q -c 5 -w --flush-interval=64 -d 1 -f raw r
    bench -q -c 5 -w --flush-interval=64 --no-drain -d 1 -f raw r
    bench -q -c 5 --no-drain -f raw r
"#;

const SNAPSHOT: &str = r#"
    snapshot
    snapshot q
    snapshot -l q
    snapshot --list q
    snapshot -l -l q
    snapshot -l -c x q
    snapshot -c x -d y q
    snapshot -a x --apply y q
    snapshot -c x
    snapshot -c
    snapshot -l q q
    snapshot -l nope
    snapshot -c x nope
    snapshot -f foo -l q
    snapshot -f raw -l r
    snapshot -f raw -c x r
    snapshot -f raw -d x r
    snapshot -f raw -a x r
    snapshot -c x r
    snapshot -d x r
    snapshot -d nope q
    snapshot -a nope q
    snapshot -a _ q
    snapshot -U -l q
    snapshot --force-share -l q
    snapshot -U -c x q
    snapshot --image-opts -l driver=qcow2,file.filename=q
    snapshot --image-opts -f qcow2 -l driver=qcow2,file.filename=q
    snapshot --image-opts -l q
    snapshot -q -l q
    snapshot -ql q
    snapshot --foo q
    snapshot -Z q
    snapshot --object secret,id=s -l q
    snapshot --object foo -l q
    snapshot -c s q
    snapshot -q -a s q
    snapshot -d s q
    snapshot -d s q
    snapshot -d s q
"#;

const RESIZE: &str = r#"
    resize
    resize q
    resize -q
    resize q 1M 1M
    resize q 1M
    resize -q q 1M
    resize q foo
    resize q +foo
    resize q 1M+1
    resize q _
    resize q 1000001
    resize --shrink q 1000001
    resize q 2000001
    resize q 512k
    resize q -512k
    resize q -2M
    resize --shrink q -2M
    resize --shrink q 0
    resize q 9E
    resize q 7E
    resize q +8E
    resize q 16E
    resize q 1.5M
    resize q +0
    resize --preallocation=foo q 2M
    resize --preallocation=full q 1M
    resize --preallocation=full --shrink q 512k
    resize -f raw --preallocation=metadata r 2M
    resize -f raw r 512k
    resize r 1M
    resize -f raw r +1
    resize -f raw --shrink r -1
    resize nope 1M
    resize -f foo q 1M
    resize --image-opts driver=qcow2,file.filename=q 1536k
    resize --image-opts -f qcow2 driver=qcow2,file.filename=q 1M
    resize -U q 1M
    resize --foo q 1M
    resize q 8M
    resize q -64k --shrink
    resize q -64k -q --shrink
    resize q -64k --preallocation=off --shr
    resize q 64k --shrink
    resize q +1M -q
    resize q 2M -f qcow2
    resize q -64k -f qcow2
    resize q -64k -f
    resize q --shrink -- -64k
    resize --shrink -- q -64k
    resize --shrink -f qcow2 q -64k
    resize --image-opts driver=qcow2,file.filename=q -64k --shrink
    resize q --shrink
    resize q -f qcow2
    resize q -f -64k
    resize q -z
    resize --object foo q 1M
    resize --object secret,id=s q 1536k
    resize --shrink q 1M
"#;

const AMEND: &str = r#"
    amend
    amend q
    amend -o
    amend -o lazy_refcounts=on
    amend -o lazy_refcounts=on q q
    amend -o help -f qcow2
    amend -o help -f raw
    amend -o help -f foo
    amend -o help q
    amend -o foo=bar q
    amend -o foo q
    amend -o compat=v9 q
    amend -o compat=0.10 q
    amend -o lazy_refcounts=on q
    amend -o refcount_bits=8 q
    amend -o compat=0.10,lazy_refcounts=on q
    amend -o compat=1.1 q
    amend -o compat=1.1,lazy_refcounts=on q
    amend -o lazy_refcounts=maybe q
    amend -o refcount_bits=3 q
    amend -o refcount_bits=128 q
    amend -o refcount_bits=0 q
    amend -o refcount_bits=x q
    amend -o refcount_bits=64 q
    amend -o compat=0.10 q
    amend -o refcount_bits=16 q
    amend -o size=512k q
    amend -o size=1500001 q
    amend -o size=1M q
    amend -o cluster_size=4k q
    amend -o preallocation=full q
    amend -o extended_l2=on q
    amend -o compression_type=zstd q
    amend -o encryption=on q
    amend -o encrypt.format=luks q
    amend -o nocow=on q
    amend -o data_file=x q
    amend -o data_file_raw=on q
    amend -o data_file_raw=off q
    amend -o backing_file=r q
    amend -o backing_file=r,backing_fmt=raw q
    amend -o backing_file= q
    amend -o backing_fmt=raw q
    amend -o lazy_refcounts=off -f raw r
    amend -o lazy_refcounts=off r
    amend -o lazy_refcounts=off nope
    amend -o lazy_refcounts=off -f foo q
    amend -q -o lazy_refcounts=off q
    amend -p -q -o lazy_refcounts=off q
    amend --force -o lazy_refcounts=off q
    amend -t foo -o lazy_refcounts=off q
    amend -t none -o lazy_refcounts=off q
    amend -U -o lazy_refcounts=off q
    amend -o lazy_refcounts=on -o lazy_refcounts=off q
    amend --image-opts -o lazy_refcounts=off driver=qcow2,file.filename=q
    amend --image-opts -f qcow2 -o lazy_refcounts=off driver=qcow2,file.filename=q
    amend --foo
"#;

const TOOL: &str = r#"
    -T
    -T foo info r
    --trace
    -q
    -q info
    --foo
    -- info r
    foo
    foo bar
    -T enable=foo info r
    -T file=nope info r
    -T foo=bar info r
"#;
