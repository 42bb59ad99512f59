//! Command lines that open, make or refuse something, run beside the installed `qemu-img`: the same output, the same
//! words, the same exit code. Where Debian's build words a mistake differently, `img_args` has it.

mod side;

use side::Side;

/// Runs one command line a line of `table` with both tools, in the same folder.
fn run(side: &mut Side, table: &str) {
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        side.both("alike", line);
    }
}

fn with(lines: &[&str]) -> Side {
    let side = Side::new();
    for line in lines {
        side.make(line);
    }
    std::fs::create_dir(side.path("d")).expect("a folder");
    side.write("e", b"");
    side
}

#[test]
fn names_formats_and_values() {
    let mut side = with(&["create -q r 1M", "create -q -f qcow2 q 1M"]);
    run(&mut side, PLAIN);
    side.finish();
}

#[test]
fn chains_and_descriptions() {
    let mut side = with(&[
        "create -q r 1M",
        "create -q -f qcow2 q 1M",
        "create -q -f vmdk v 1M",
        "create -q -f qcow2 -b q -F qcow2 top",
        "create -q -f qcow2 -b gone -F qcow2 -u tgone 1M",
        "create -q -f qcow2 -b q -F raw -u tfmt 1M",
        "create -q -f qcow2 -o data_file=dgone dimg 1M",
    ]);
    side.remove("dgone");
    std::os::unix::fs::symlink("loop", side.path("loop")).expect("a link");
    std::os::unix::fs::symlink("nope", side.path("dang")).expect("a link");
    side.write("odd", &side::disk(700, 7));
    let image = side.read("q");
    side.write("qh", &image[..100]);
    run(&mut side, CHAINS);
    side.finish();
}

#[test]
fn options_of_nodes() {
    let mut side = with(&[
        "create -q r 1M",
        "create -q -f qcow2 q 1M",
        "create -q -f qcow2 -b q -F qcow2 top",
        "create -q -f qcow2 -o data_file=dd dimg 1M",
    ]);
    run(&mut side, OPTIONS);
    side.finish();
}

#[test]
fn files_that_are_missing_come_before_unknown_options() {
    let mut side = with(&["create -q r 1M", "create -q -f qcow2 q 1M"]);
    run(&mut side, UNKNOWN);
    side.finish();
}

#[test]
fn guesses_are_told_before_what_comes_of_them() {
    let mut side =
        with(&["create -q r 1M", "create -q -f qcow2 q 1M", "create -q -f qcow2 -b q -F qcow2 top"]);
    run(&mut side, GUESSED);
    side.finish();
}

const UNKNOWN: &str = r#"
    info --image-opts driver=qcow2,file.filename=gone,foo=1
    info --image-opts driver=qcow2,file.filename=q,foo=1
    info --image-opts driver=qcow2,file.driver=file,file.filename=gone,file.foo=1
    info --image-opts driver=qcow2,file.driver=file,file.filename=q,file.foo=1
    info --image-opts driver=qcow2,file.filename=q/x,foo=1
    info --image-opts driver=file,filename=gone,foo=1
    info --image-opts driver=vmdk,file.filename=gone,foo=1
    info --image-opts driver=compress,file.filename=gone,foo=1
    info --image-opts driver=qcow2,file.driver=blkdebug,file.image.filename=gone,file.foo=1
    info --image-opts driver=qcow2,file.filename=gone,cache.direct=bad
    info --image-opts driver=none,file.filename=gone,foo=1
    info --image-opts driver=null-co,foo=1
    info --image-opts driver=qcow2,foo=1
    info json:{"driver":"qcow2","file":{"driver":"file","filename":"gone"},"foo":1}
    info json:{"driver":"qcow2","file.filename":"gone","foo":1}
    check --image-opts driver=qcow2,file.filename=gone,foo=1
    convert --image-opts driver=qcow2,file.filename=gone,foo=1 x
    convert -n --target-image-opts q driver=qcow2,file.filename=gone,foo=1
    resize --image-opts driver=qcow2,file.filename=gone,foo=1 1M
    snapshot -l --image-opts driver=qcow2,file.filename=gone,foo=1
"#;

const GUESSED: &str = r#"
    resize --image-opts file.filename=r,offset=0 2M
    resize --image-opts file.filename=r,offset=2M 2M
    resize --image-opts file.filename=r,offset=bad 2M
    resize --image-opts file.filename=r,foo=1 2M
    resize --image-opts file.filename=r 3M
    amend --image-opts file.filename=r,foo=1 -o size=2M
    commit --image-opts file.filename=r
    commit r
    commit top
    snapshot -c a --image-opts file.filename=r
    snapshot -l --image-opts file.filename=r
    rebase --image-opts file.filename=r -b a
    rebase -b r -F raw top
    check -r all r
    check -r all --image-opts file.filename=r
    check r
    bench -c 1 -w --image-opts file.filename=r,offset=5M
    convert -n --target-image-opts q file.filename=r
    convert -n --target-image-opts q file.filename=r,offset=2M
    convert -n q r
    map --image-opts file.filename=r
"#;

#[test]
fn what_is_read_only_and_what_is_never_made() {
    let mut side =
        with(&["create -q r 1M", "create -q -f qcow2 q 1M", "create -q -f qcow2 -b q -F qcow2 top"]);
    side.write("a:b", &side.read("q"));
    run(&mut side, READ_ONLY);
    side.finish();
}

const READ_ONLY: &str = r#"
    resize --image-opts driver=qcow2,file.filename=q,read-only=on 2M
    resize --image-opts driver=qcow2,file.filename=q,file.read-only=on 2M
    resize json:{"driver":"qcow2","file.filename":"q","read-only":true} 2M
    amend --image-opts driver=qcow2,file.filename=q,read-only=on -o compat=0.10
    snapshot -c x --image-opts driver=qcow2,file.filename=q,read-only=on
    check -r all --image-opts driver=qcow2,file.filename=q,read-only=on
    check --image-opts driver=qcow2,file.filename=q,read-only=on
    bitmap --add --image-opts driver=qcow2,file.filename=q,read-only=on b
    convert -n --target-image-opts -O qcow2 q driver=qcow2,file.filename=q,read-only=on
    commit --image-opts driver=qcow2,file.filename=top,read-only=on
    rebase -b _ --image-opts driver=qcow2,file.filename=top,read-only=on
    bench -w -c 1 --image-opts driver=qcow2,file.filename=q,read-only=on
    amend -o compat= q
    compare --object x q q
    compare --object secret,id=k q q
    compare --object secret,id=k,data=a --object secret,id=k,data=a q q
    create -f host_device r 1M
    create -f host_device d 1M
    create -f host_device n1 1M
    create -f nbd n2 1M
    create -f nvme n3 1M
    convert -O host_device r n4
    convert -O host_device r q
    convert -n -O host_device r q
    info -f host_device r
    info host_device:r
    info host_device:n5
    info file:a:b
    info file:./a:b
    info a:b
    -T , compare r r
    -T enable= compare r r
    -T enable=one,enable=two compare r r
    -T enable=one,colour=red compare r r
    -T one,switch compare r r
    -T file=d compare r r
    -T file=n/o compare r r
    -T events=d compare r r
"#;

/// One command line a line; `_` is an empty word.
const PLAIN: &str = r#"
    info _
    info d
    info nope
    info nodir/x
    info q/x
    info -f qcow2 r
    info -f foo r
    info e
    check _
    check d
    check nope
    check r
    check -f raw r
    check -f qcow2 r
    check e
    map _
    map d
    map nope
    map e
    compare _ r
    compare r _
    compare r d
    compare nope r
    compare r nope
    compare -f foo r r
    compare -f qcow2 r r
    compare -F qcow2 r r
    compare -F foo r r
    convert _ o
    convert r _
    convert d o
    convert r d
    convert nope o
    convert r nodir/o
    convert -O qcow2 r nodir/o
    convert -O qcow2 r d
    convert -O qcow2 r _
    convert -O foo r o
    convert -f foo r o
    convert -f qcow2 r o
    convert -n r nope
    convert -n -O qcow2 r nope
    convert -n -O qcow2 r r
    convert -n r d
    convert -n -O foo r r
    convert -t foo r o
    convert -T foo r o
    convert -n r e
    convert r q r
    create _ 1M
    create d 1M
    create nodir/x 1M
    create -f qcow2 _ 1M
    create -f qcow2 d 1M
    create -f qcow2 nodir/x 1M
    create -f qcow2 -b _ x 1M
    create -f qcow2 -b _ -F qcow2 x 1M
    create -f qcow2 -b r -F foo x
    create -f qcow2 -b r -F qcow2 x
    create -f qcow2 -b nope -F raw x
    create -f qcow2 -b d -F raw x
    create -f qcow2 -b d x
    create -f qcow2 -b q x
    create -f qcow2 -b r x
    create -f qcow2 -b q -F qcow2 -u x
    create -f qcow2 -b nope -F qcow2 -u x
    create -f qcow2 -b x -F qcow2 x
    create -f qcow2 -o cluster_size=1 x 1M
    create -f qcow2 -o cluster_size=4M x 1M
    create -f qcow2 -o cluster_size=65537 x 1M
    create -f qcow2 -o refcount_bits=3 x 1M
    create -f qcow2 -o refcount_bits=128 x 1M
    create -f qcow2 -o refcount_bits=8,compat=0.10 x 1M
    create -f qcow2 -o compat=9 x 1M
    create -f qcow2 -o compression_type=foo x 1M
    create -f qcow2 -o compression_type=zstd,compat=0.10 x 1M
    create -f qcow2 -o extended_l2=on,compat=0.10 x 1M
    create -f qcow2 -o extended_l2=on,cluster_size=4k x 1M
    create -f qcow2 -o lazy_refcounts=on,compat=0.10 x 1M
    create -f qcow2 -o data_file=xd,compat=0.10 x 1M
    create -f qcow2 -o data_file_raw=on x 1M
    create -f qcow2 -o data_file=nodir/y x 1M
    create -f qcow2 -o data_file=xd,data_file_raw=on -b q -F qcow2 x
    create -f qcow2 -o preallocation=foo x 1M
    create -f raw -o preallocation=foo x 1M
    create -f raw -o preallocation=metadata x 1M
    create -f qcow2 x 9223372036854775807
    create -f qcow2 x 8E
    create -f raw x 8E
    create -f qcow2 x 0
    create x 0
    create -f qcow2 -o nocow=foo x 1M
    create -f qcow2 -o extent_size_hint=foo x 1M
    create -f qcow2 -o cluster_size=512 x 64T
    create -f qcow2 -o cluster_size=512 x 200G
    bench _
    bench d
    bench nope
    bench -c 1 e
    bench -c 1 -w nope
"#;

const CHAINS: &str = r#"
    info loop
    info dang
    info odd
    info --output=json odd
    map odd
    map --output=json odd
    check odd
    info qh
    check qh
    info tgone
    info --backing-chain tgone
    info --backing-chain tfmt
    map tgone
    check tgone
    compare tgone r
    compare r tgone
    convert tgone o
    convert tfmt o
    map tfmt
    info dimg
    map dimg
    check dimg
    convert dimg o
    convert -O qcow2 -B q r o
    convert -O qcow2 -B nope -F qcow2 r o
    convert -O qcow2 -B nope -F foo r o
    convert -O qcow2 -B d -F raw r o
    convert -O qcow2 -B _ r o
    convert -O qcow2 -o backing_file= r o
    convert -O qcow2 -o cluster_size=3 r o
    convert -O qcow2 -o compat=2 r o
    convert -O qcow2 -o foo=bar r o
    convert -O qcow2 -o preallocation=bar r o
    convert -O raw -o preallocation=bar r o
    convert -O qcow2 -o cluster_size=64k -o cluster_size=4k r o
    convert -O qcow2 -o compat=0.10 -c -o compression_type=zstd r o
    create -f qcow2 -o cluster_size=64k -o cluster_size=4k x 1M
    create -f qcow2 -f raw x 1M
    create -f qcow2 -F raw -F qcow2 -b q x
    create -f qcow2 -b r -b q -F qcow2 x
    create -f qcow2 -b q -F qcow2 -o backing_fmt=raw x
    create -f qcow2 -b q -o backing_fmt=raw x
    create -f qcow2 -b q -o backing_file=r,backing_fmt=raw x
    create -f qcow2 -b e -F raw x
    create -f qcow2 -b odd -F raw x
    create -f qcow2 -b json:{ -F raw x
    create -f qcow2 -b foo:bar -F raw x
    create -f qcow2 -b loop -F raw x
    create -f qcow2 -b d/../q -F qcow2 x
    create -f qcow2 d/x 1M -b ../q -F qcow2
    create -f qcow2 d/x -b q -F qcow2
    create loop 1M
    create -f qcow2 loop 1M
    create dang 1M
    info foo:bar
    info file:r
    info file:
    info file:nope
    info ./foo:bar
    info json:{"driver":"file"}
    info json:{"driver":"file","filename":"r"}
    info json:{"driver":"raw","file":{"driver":"file","filename":"r"}}
    info json:{"driver":"raw","file":"r"}
    info json:{"driver":"raw"}
    info json:{"file":{"driver":"file","filename":"r"}}
    info json:{"filename":"r"}
    info json:{"driver":"foo"}
    info json:{"driver":"qcow2","file":{"driver":"file","filename":"r"}}
    info json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"foo":1}
    info json:{"driver":"qcow2","file":{"driver":"file","filename":"q","foo":1}}
    info json:{"driver":"qcow2","file":{"driver":"file","filename":1}}
    info -f raw json:{"driver":"qcow2","file":{"driver":"file","filename":"q"}}
    info -f qcow2 json:{"driver":"qcow2","file":{"driver":"file","filename":"q"}}
    info --image-opts driver=qcow2,file.filename=q
    info --image-opts file.filename=q
    info --image-opts filename=q
    info --image-opts q
    info --image-opts driver=qcow2
    info --image-opts driver=raw,file.filename=q,size=512
    info --image-opts driver=raw,file.filename=q,offset=512
    info --image-opts driver=raw,file.filename=q,offset=10G
    info --image-opts driver=raw,file.filename=q,size=513
    info --image-opts driver=raw,file.filename=q,size=foo
    info --image-opts driver=raw,file.filename=q,size=1M,offset=-1
    info --image-opts driver=file,filename=q
    info --image-opts driver=null-co,size=1M
    info --image-opts driver=null-co
"#;

const OPTIONS: &str = r#"
    map --image-opts driver=qcow2,file.filename=q,lazy-refcounts=on
    map --image-opts driver=qcow2,file.filename=q,lazy-refcounts=off
    map --image-opts driver=qcow2,file.filename=q,lazy-refcounts=yes
    map --image-opts driver=qcow2,file.filename=q,lazy-refcounts=foo
    map --image-opts driver=qcow2,file.filename=q,lazy-refcounts=1
    map --image-opts driver=qcow2,file.filename=q,lazy-refcounts=
    map --image-opts driver=qcow2,file.filename=q,detect-zeroes=off
    map --image-opts driver=qcow2,file.filename=q,detect-zeroes=on
    map --image-opts driver=qcow2,file.filename=q,detect-zeroes=unmap
    map --image-opts driver=qcow2,file.filename=q,detect-zeroes=foo
    map --image-opts driver=qcow2,file.filename=q,detect-zeroes=
    map --image-opts driver=qcow2,file.filename=q,discard=off
    map --image-opts driver=qcow2,file.filename=q,discard=ignore
    map --image-opts driver=qcow2,file.filename=q,discard=on
    map --image-opts driver=qcow2,file.filename=q,discard=unmap
    map --image-opts driver=qcow2,file.filename=q,discard=foo
    map --image-opts driver=qcow2,file.filename=q,discard=
    map --image-opts driver=qcow2,file.filename=q,read-only=on
    map --image-opts driver=qcow2,file.filename=q,read-only=off
    map --image-opts driver=qcow2,file.filename=q,read-only=yes
    map --image-opts driver=qcow2,file.filename=q,read-only=foo
    map --image-opts driver=qcow2,file.filename=q,auto-read-only=on
    map --image-opts driver=qcow2,file.filename=q,auto-read-only=off
    map --image-opts driver=qcow2,file.filename=q,auto-read-only=foo
    map --image-opts driver=qcow2,file.filename=q,force-share=on
    map --image-opts driver=qcow2,file.filename=q,force-share=off
    map --image-opts driver=qcow2,file.filename=q,force-share=foo
    map --image-opts driver=qcow2,file.filename=q,cache.direct=on
    map --image-opts driver=qcow2,file.filename=q,cache.direct=off
    map --image-opts driver=qcow2,file.filename=q,cache.direct=foo
    map --image-opts driver=qcow2,file.filename=q,cache.no-flush=on
    map --image-opts driver=qcow2,file.filename=q,cache.no-flush=off
    map --image-opts driver=qcow2,file.filename=q,cache.no-flush=foo
    map --image-opts driver=qcow2,file.filename=q,cache.foo=on
    map --image-opts driver=qcow2,file.filename=q,cache=foo
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=0
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=64k
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=1M
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=-1
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=foo
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=1Z
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=128M
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=99999999999999999999
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=1.5M
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=1
    map --image-opts driver=qcow2,file.filename=q,refcount-cache-size=0
    map --image-opts driver=qcow2,file.filename=q,refcount-cache-size=64k
    map --image-opts driver=qcow2,file.filename=q,refcount-cache-size=-1
    map --image-opts driver=qcow2,file.filename=q,refcount-cache-size=foo
    map --image-opts driver=qcow2,file.filename=q,cache-size=0
    map --image-opts driver=qcow2,file.filename=q,cache-size=1M
    map --image-opts driver=qcow2,file.filename=q,cache-size=foo
    map --image-opts driver=qcow2,file.filename=q,cache-size=64k
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=2M,cache-size=1M
    map --image-opts driver=qcow2,file.filename=q,l2-cache-size=1M,cache-size=1M,refcount-cache-size=1M
    map --image-opts driver=qcow2,file.filename=q,refcount-cache-size=2M,cache-size=1M
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=512
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=4k
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=64k
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=128k
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=1000
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=foo
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=256
    map --image-opts driver=qcow2,file.filename=q,l2-cache-entry-size=0
    map --image-opts driver=qcow2,file.filename=q,cache-clean-interval=0
    map --image-opts driver=qcow2,file.filename=q,cache-clean-interval=600
    map --image-opts driver=qcow2,file.filename=q,cache-clean-interval=foo
    map --image-opts driver=qcow2,file.filename=q,cache-clean-interval=-1
    map --image-opts driver=qcow2,file.filename=q,cache-clean-interval=4294967296
    map --image-opts driver=qcow2,file.filename=q,cache-clean-interval=99999999999
    map --image-opts driver=qcow2,file.filename=q,overlap-check=none
    map --image-opts driver=qcow2,file.filename=q,overlap-check=constant
    map --image-opts driver=qcow2,file.filename=q,overlap-check=cached
    map --image-opts driver=qcow2,file.filename=q,overlap-check=all
    map --image-opts driver=qcow2,file.filename=q,overlap-check=foo
    map --image-opts driver=qcow2,file.filename=q,overlap-check.template=none
    map --image-opts driver=qcow2,file.filename=q,overlap-check.template=constant
    map --image-opts driver=qcow2,file.filename=q,overlap-check.template=cached
    map --image-opts driver=qcow2,file.filename=q,overlap-check.template=all
    map --image-opts driver=qcow2,file.filename=q,overlap-check.template=foo
    map --image-opts driver=qcow2,file.filename=q,overlap-check.main-header=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.main-header=off
    map --image-opts driver=qcow2,file.filename=q,overlap-check.main-header=foo
    map --image-opts driver=qcow2,file.filename=q,overlap-check.active-l1=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.active-l1=off
    map --image-opts driver=qcow2,file.filename=q,overlap-check.active-l1=foo
    map --image-opts driver=qcow2,file.filename=q,overlap-check.active-l2=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.active-l2=off
    map --image-opts driver=qcow2,file.filename=q,overlap-check.refcount-table=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.refcount-block=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.snapshot-table=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.inactive-l1=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.inactive-l2=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.bitmap-directory=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check.foo=on
    map --image-opts driver=qcow2,file.filename=q,overlap-check=none,overlap-check.template=all
    map --image-opts driver=qcow2,file.filename=q,overlap-check=none,overlap-check.template=none
    map --image-opts driver=qcow2,file.filename=q,pass-discard-request=on
    map --image-opts driver=qcow2,file.filename=q,pass-discard-request=off
    map --image-opts driver=qcow2,file.filename=q,pass-discard-request=foo
    map --image-opts driver=qcow2,file.filename=q,pass-discard-snapshot=on
    map --image-opts driver=qcow2,file.filename=q,pass-discard-snapshot=off
    map --image-opts driver=qcow2,file.filename=q,pass-discard-snapshot=foo
    map --image-opts driver=qcow2,file.filename=q,pass-discard-other=on
    map --image-opts driver=qcow2,file.filename=q,pass-discard-other=off
    map --image-opts driver=qcow2,file.filename=q,pass-discard-other=foo
    map --image-opts driver=qcow2,file.filename=q,discard-no-unref=on
    map --image-opts driver=qcow2,file.filename=q,discard-no-unref=off
    map --image-opts driver=qcow2,file.filename=q,discard-no-unref=foo
    map --image-opts driver=qcow2,file.filename=q,node-name=a
    map --image-opts driver=qcow2,file.filename=q,node-name=foo
    map --image-opts driver=qcow2,file.filename=q,node-name=1
    map --image-opts driver=qcow2,file.filename=q,node-name=
    map --image-opts driver=qcow2,file.filename=q,node-name=a#b
    map --image-opts driver=qcow2,file.filename=q,backing=
    map --image-opts driver=qcow2,file.filename=q,backing=null
    map --image-opts driver=qcow2,file.filename=q,backing=q
    map --image-opts driver=qcow2,file.filename=q,backing=foo
    map --image-opts driver=qcow2,file.filename=q,backing.driver=raw
    map --image-opts driver=qcow2,file.filename=q,backing.driver=qcow2
    map --image-opts driver=qcow2,file.filename=q,backing.driver=foo
    map --image-opts driver=qcow2,file.filename=q,backing.file.filename=r
    map --image-opts driver=qcow2,file.filename=q,backing.driver=raw,backing.file.filename=r
    map --image-opts driver=qcow2,file.filename=q,data-file.filename=r
    map --image-opts driver=qcow2,file.filename=q,file.locking=on
    map --image-opts driver=qcow2,file.filename=q,file.locking=off
    map --image-opts driver=qcow2,file.filename=q,file.locking=auto
    map --image-opts driver=qcow2,file.filename=q,file.locking=foo
    map --image-opts driver=qcow2,file.filename=q,file.aio=threads
    map --image-opts driver=qcow2,file.filename=q,file.aio=native
    map --image-opts driver=qcow2,file.filename=q,file.aio=io_uring
    map --image-opts driver=qcow2,file.filename=q,file.aio=foo
    map --image-opts driver=qcow2,file.filename=q,file.aio-max-batch=foo
    map --image-opts driver=qcow2,file.filename=q,file.drop-cache=on
    map --image-opts driver=qcow2,file.filename=q,file.drop-cache=off
    map --image-opts driver=qcow2,file.filename=q,file.drop-cache=foo
    map --image-opts driver=qcow2,file.filename=q,file.x-check-cache-dropped=on
    map --image-opts driver=qcow2,file.filename=q,file.x-check-cache-dropped=off
    map --image-opts driver=qcow2,file.filename=q,file.x-check-cache-dropped=foo
    map --image-opts driver=qcow2,file.filename=q,file.pr-manager=foo
    map --image-opts driver=qcow2,file.filename=q,file.cache.direct=on
    map --image-opts driver=qcow2,file.filename=q,file.cache.direct=foo
    map --image-opts driver=qcow2,file.filename=q,file.cache.no-flush=on
    map --image-opts driver=qcow2,file.filename=q,file.discard=unmap
    map --image-opts driver=qcow2,file.filename=q,file.discard=foo
    map --image-opts driver=qcow2,file.filename=q,file.read-only=on
    map --image-opts driver=qcow2,file.filename=q,file.read-only=foo
    map --image-opts driver=qcow2,file.filename=q,file.auto-read-only=on
    map --image-opts driver=qcow2,file.filename=q,file.node-name=f
    map --image-opts driver=qcow2,file.filename=q,file.detect-zeroes=on
    map --image-opts driver=qcow2,file.filename=q,file.force-share=on
    map --image-opts driver=qcow2,file.filename=q,foo=bar
    map --image-opts driver=qcow2,file.filename=q,file.foo=bar
    map --image-opts driver=qcow2,file.filename=q,size=1M
    map --image-opts driver=qcow2,file.filename=q,offset=0
    map --image-opts driver=qcow2,file.filename=q,driver=raw
    map --image-opts driver=qcow2,file.filename=q,file=q
    map --image-opts driver=qcow2,file.filename=q,active=on
    map --image-opts driver=qcow2,file.filename=q,active=foo
    map --image-opts driver=qcow2,file.filename=q,snapshot=x
    map --image-opts driver=qcow2,file.filename=q,copy-on-read=on
    map --image-opts driver=qcow2,file.filename=q,copy-on-read=off
    map --image-opts driver=qcow2,file.filename=q,throttling.iops-total=1
    map --image-opts driver=qcow2,file.filename=q,rerror=stop
    map --image-opts driver=qcow2,file.filename=q,cache=writeback
    map --image-opts driver=qcow2,file.filename=q,aio=native
    map --image-opts driver=qcow2,file.filename=q,locking=on
    map --image-opts driver=qcow2,file.filename=q,file.driver=file
    map --image-opts driver=qcow2,file.filename=q,file.driver=qcow2
    map --image-opts driver=qcow2,file.filename=q,file.driver=foo
    map --image-opts driver=qcow2,file.filename=top,backing=
    map --image-opts driver=qcow2,file.filename=top,backing=null
    map --image-opts driver=qcow2,file.filename=top,backing.driver=raw,backing.file.filename=r
    map --image-opts driver=qcow2,file.filename=top,backing.driver=raw
    map --image-opts driver=qcow2,file.filename=top,backing.driver=qcow2
    map --image-opts driver=qcow2,file.filename=top,backing.read-only=on
    map --image-opts driver=qcow2,file.filename=top,backing.read-only=off
    map --image-opts driver=qcow2,file.filename=top,backing.driver=foo
    map --image-opts driver=qcow2,file.filename=top,backing=nope
    map --image-opts driver=qcow2,file.filename=top,backing.node-name=b
    map --image-opts driver=qcow2,file.filename=top,backing.l2-cache-size=1M
    map --image-opts driver=qcow2,file.filename=top,backing.foo=1
    map --image-opts driver=qcow2,file.filename=top,backing.filename=r
    map --image-opts driver=qcow2,file.filename=dimg,data-file=
    map --image-opts driver=qcow2,file.filename=dimg,data-file.filename=r
    map --image-opts driver=qcow2,file.filename=dimg,data-file.driver=raw
    map --image-opts driver=qcow2,file.filename=dimg,data-file.driver=file,data-file.filename=dd
    map --image-opts driver=qcow2,file.filename=dimg,data-file.driver=raw,data-file.file.filename=dd
    map --image-opts driver=qcow2,file.filename=dimg,data-file.driver=qcow2,data-file.file.filename=dd
    map --image-opts driver=qcow2,file.filename=dimg,data-file.foo=1
    map --image-opts driver=qcow2,file.filename=dimg,data-file=nope
    map --output=json --image-opts driver=raw,file.filename=r,size=512
    map --output=json --image-opts driver=raw,file.filename=r,size=513
    map --output=json --image-opts driver=raw,file.filename=r,size=foo
    map --output=json --image-opts driver=raw,file.filename=r,size=-1
    map --output=json --image-opts driver=raw,file.filename=r,size=2M
    map --output=json --image-opts driver=raw,file.filename=r,offset=512
    map --output=json --image-opts driver=raw,file.filename=r,offset=10G
    map --output=json --image-opts driver=raw,file.filename=r,offset=foo
    map --output=json --image-opts driver=raw,file.filename=r,size=512,offset=1M
    map --output=json --image-opts driver=raw,file.filename=r,size=1M,offset=512
    map --output=json --image-opts driver=raw,file.filename=r,size=0
    map --output=json --image-opts driver=raw,file.filename=r,offset=0
    map --output=json --image-opts driver=raw,file.filename=r,lazy-refcounts=on
    map --output=json --image-opts driver=raw,file.filename=r,detect-zeroes=on
    map --output=json --image-opts driver=raw,file.filename=r,detect-zeroes=unmap
    map --output=json --image-opts driver=raw,file.filename=r,detect-zeroes=unmap,discard=unmap
    map --output=json --image-opts driver=raw,file.filename=r,node-name=x,file.node-name=x
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"lazy-refcounts":true}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"lazy-refcounts":"on"}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"lazy-refcounts":1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"l2-cache-size":1048576}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"l2-cache-size":"1M"}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"l2-cache-size":1.5}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"l2-cache-size":-1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"l2-cache-size":true}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"backing":null}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"backing":""}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"backing":{}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"backing":1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"cache":{"direct":true}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"cache":{"direct":"on"}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"cache":{"direct":1}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"cache":{"foo":true}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"cache":1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"cache.direct":true}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"overlap-check":{"template":"all"}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"overlap-check":"all"}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"overlap-check":1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"node-name":1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"discard":"unmap"}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"discard":1}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"read-only":true}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"detect-zeroes":"on"}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"foo":null}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"foo":[]}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"foo":{}}
    map json:{"driver":"qcow2","file":{"driver":"file","filename":"q"},"foo":{"a":1}}
    map --output=json json:{"driver":"qcow2","file.filename":"q","file":{"driver":"file"}}
    map --output=json json:{"driver":1}
    map --output=json json:{"driver":"qcow2","file":null}
    map --output=json json:{"driver":"qcow2","file":1}
    map --output=json json:{"driver":"qcow2","file":{}}
    map --output=json json:{"driver":"qcow2","file":[]}
    map --output=json json:{"driver":"qcow2","file":{"driver":"qcow2","file":{"driver":"file","filename":"q"}}}
    map --output=json json:{"file":"q"}
    map --output=json json:{"file":{"filename":"q"}}
    map --output=json json:{"file":{"driver":"raw","file":{"driver":"file","filename":"q"}}}
    map --output=json json:{"driver":"raw","offset":"1k","file.filename":"r"}
    map --output=json json:{"driver":"file","filename":"r","locking":true}
    map --output=json json:{"driver":"file","filename":""}
    map --output=json json:{"driver":"null-co","size":1024,"read-zeroes":true}
"#;

#[test]
fn a_data_file_is_never_the_image_by_another_name() {
    let side = with(&["create -q -f qcow2 image 1M"]);
    std::fs::hard_link(side.path("image"), side.path("hard")).expect("a link");
    std::os::unix::fs::symlink("image", side.path("soft")).expect("a link");
    std::os::unix::fs::symlink(".", side.path("d/here")).expect("a link");
    let before = side.read("image");
    for data in ["image", "./image", "hard", "soft", "d/../image"] {
        let run = side.ours(&format!("create -q -f qcow2 -o data_file={data} image 1M"));
        let text = format!("qemu-img: image: the data file '{data}' and the image are the same file\n");
        assert_eq!((run.code, run.stderr), (1, text));
        assert_eq!(side.read("image"), before, "{data}");
    }
    for data in ["d/here/new", "./d/new"] {
        let run = side.ours(&format!("create -q -f qcow2 -o data_file={data} d/new 1M"));
        assert_eq!(run.code, 1, "{}", run.stderr);
        assert!(!side.path("d/new").exists());
    }
    assert_eq!(side.ours("create -q -f qcow2 -o data_file=d/other d/new 1M").code, 0);
}
