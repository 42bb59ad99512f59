//! Places in the work of qcow2 that a blkdebug node hears of while `drystone-img` works: a failure that each of them arms
//! fails the same commands as with the installed `qemu-img`, and leaves the image in order.

mod side;

use side::Side;

fn images(side: &Side) {
    side.make("create -q -f qcow2 -o cluster_size=512 small 1M");
    side.make("create -q -f qcow2 -o cluster_size=512 big 3M");
    side.io("big", "write -P 2 0 64k; write -P 3 2M 100k");
    side.make("create -q -f qcow2 base 4M");
    side.io("base", "write -P 1 0 4M");
    side.make("create -q -f qcow2 -o cluster_size=4k -b base -F qcow2 over");
    side.io("over", "write -P 2 64k 100k");
}

/// An event, an image, and a command on it, with `{}` for the image.
const CASES: &[(&str, &str, &str)] = &[
    ("l1_grow_alloc_table", "small", "resize -q --image-opts {} 1G"),
    ("l1_grow_write_table", "small", "resize -q --image-opts {} 1G"),
    ("l1_grow_activate_table", "small", "resize -q --image-opts {} 1G"),
    ("l1_shrink_write_table", "big", "resize -q --shrink --image-opts {} 1M"),
    ("l1_shrink_free_l2_clusters", "big", "resize -q --shrink --image-opts {} 1M"),
    ("empty_image_prepare", "over", "commit --image-opts {}"),
    ("reftable_update", "over", "commit --image-opts {}"),
    ("l1_update", "over", "commit --image-opts {}"),
    ("refblock_update_part", "big", "snapshot --image-opts -c s {}"),
    ("cluster_free", "big", "resize -q --shrink --image-opts {} 1M"),
    // Nobody tells these.
    ("reftable_grow", "small", "resize -q --image-opts {} 1G"),
    ("refblock_update", "small", "resize -q --image-opts {} 1G"),
    // And these not here.
    ("l1_grow_alloc_table", "small", "resize -q --image-opts {} 2M"),
    ("l1_shrink_write_table", "big", "resize -q --image-opts {} 4M"),
    ("empty_image_prepare", "over", "commit -d --image-opts {}"),
];

#[test]
fn events_fail_the_same_commands() {
    let mut side = Side::new();
    for (event, image, line) in CASES {
        let rule = format!("file.inject-error.0.event={event},file.inject-error.0.errno=5");
        let options = format!("driver=qcow2,file.driver=blkdebug,file.image.filename={image},{rule}");
        let line = line.replace("{}", &options);
        images(&side);
        let theirs = side.theirs(&line);
        images(&side);
        side.make(&format!("convert -O raw {image} before"));
        let ours = side.ours(&line);
        side.expect_alike(&format!("{event}: {line}: {ours:?}, {theirs:?}"), &ours.code, &theirs.code);
        let checked = side.theirs(&format!("check -q {image}"));
        if ![0, 3].contains(&checked.code) {
            side.complain(&format!("{event}: {line}: {checked:?}"));
        }
        let same = side.theirs(&format!("compare -q {image} before")).code;
        let longer = line.starts_with("resize");
        if ours.code != 0 && same != 0 && !longer {
            side.complain(&format!("{event}: {line}: the disk changed"));
        }
    }
    side.finish();
}
