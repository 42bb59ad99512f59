//! What ours does beyond the reference: pictures of a map, and the names that an image holds.

mod side;

use side::{Run, Side};

fn chain() -> Side {
    let side = Side::new();
    side.make("create -q -f qcow2 base 4M");
    side.io("base", "write -P 1 0 1M; write -z 2M 64k");
    side.make("create -q -f qcow2 -b base -F qcow2 top 6M");
    side.io("top", "write -P 2 512k 100k; write -c -P 3 3M 64k");
    side
}

#[test]
fn pictures() {
    let side = chain();
    let svg = side.our_make("map --output=svg top");
    let html = side.our_make("map --output=html top");
    for text in ["0 top: data", "1 base: data", "0 top: compressed data", "1 base: zeros"] {
        assert!(svg.contains(text), "{text}: {svg}");
    }
    assert!(svg.starts_with("<?xml") && svg.ends_with("</svg>\n"));
    assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
    for outside in ["http:", "https:", "src=", "href=", "<script"] {
        let own = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains(outside), "{outside}");
    }
    // The sums are those of the map.
    assert!(html.contains("<td>1 base</td><td>data</td><td class=\"number\">917504</td>"), "{html}");
    assert!(html.contains("<td>0 top</td><td>data</td><td class=\"number\">131072</td>"), "{html}");
    let refused = side.ours("map --output=png top");
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
}

#[test]
fn names_are_listed_and_nothing_is_opened() {
    let side = chain();
    let told = |line: &str| side.our_make(line);
    assert_eq!(
        told("info --inspect top"),
        "image: top\nfile format: qcow2\nbacking file: base\n    format: qcow2\n    path: base\n"
    );
    assert_eq!(told("info --inspect base"), "image: base\nfile format: qcow2\nnames no other file\n");
    side.make("create -q -f qcow2 -o data_file=d d.qcow2 1M");
    side.remove("d");
    assert_eq!(
        told("info --inspect d.qcow2"),
        "image: d.qcow2\nfile format: qcow2\ndata file: d\n    path: d\n"
    );
    let hostile = r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/shadow"}}"#;
    side.make(&format!("rebase -u -F raw -b {hostile} top"));
    let text = told("info --inspect top");
    assert!(text.contains("    file.filename: /etc/shadow\n") && !text.contains("path:"), "{text}");
    let json: serde_json::Value =
        serde_json::from_str(&told("info --inspect --output=json top")).expect("it is JSON");
    assert_eq!(json["names"][0]["within"][0]["value"], "/etc/shadow");
    // Whether what is named exists makes no difference.
    let Run { code, stderr, .. } = side.ours("info --inspect --image-names=forbid top");
    assert_eq!((code, stderr.as_str()), (0, ""));
}

/// The reference's JSON has single quotes, too, also where an image holds it.
#[test]
fn descriptions_in_an_image_may_have_single_quotes() {
    let mut side = Side::new();
    side.make("create -q -f qcow2 base 1M");
    side.io("base", "write -P 5 64k 64k");
    side.make("create -q -f qcow2 -F qcow2 -b json:{'driver':'qcow2','file':{'driver':'file','filename':'base'}} top");
    side.both("map", "map top");
    side.both("info", "info --backing-chain top");
    side.make(
        "create -q -f qcow2 -F qcow2 -u -b json:{'driver':'qcow2','file':{'filename':'/etc/none'}} bad 1M",
    );
    side.both("map", "map bad");
    let names = side.our_make("info --inspect bad");
    assert!(names.contains("file.filename: /etc/none"), "{names}");
    side.finish();
}
