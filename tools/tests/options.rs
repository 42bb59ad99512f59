//! Option strings, held beside the installed `qemu-img`.

mod reference;

use drystone_tools::options::{ImageName, is_valid_list, json_filename, parse_keyval};
use reference::Reference;

#[test]
fn json_names_fail_in_the_words_of_the_reference() {
    let reference = Reference::new();
    for json in [
        "",
        "{",
        "[]",
        "1",
        "\"x\"",
        "{\"a\":1,,}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\" 1}",
        "{1:2}",
        "{a:2}",
        "[1",
        "[1,]",
        "[1 2]",
        "{\"a\":\"b",
        "{'a':'\\u00'}",
        r#"{"a":"\ud800"}"#,
        r#"{"a":"\udc00x"}"#,
        "{\"a\":01}",
        "{\"a\":-}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":1e}",
        "{\"a\":+1}",
        "{\"a\":nul}",
        "{\"a\":NULL}",
        "}",
        "{}}",
        "{} {}",
        "{\"a\":tru e}",
        "{\"a\":1x}",
        "{]",
        "[}",
        "{,}",
        "{\"a\":1]",
        ":",
        ",",
        "@",
        "{\"a\":%d}",
        "\"\\q\"",
        "{\"a\":\"x\ny\"}",
        "{\"a\":{},\"a\":1}",
        "{} @",
        "{\"a\" 1, @}",
        "{\"a\" 1",
        r#"{"a":"\ud800\u0041"}"#,
        r#"{"a":"\ud834\ud834"}"#,
        r#""\u12""#,
        r#""\u12"#,
        "{\"a\":1} \"x",
        "{'driver':'quorum','children.0.filename':'r','children.2.filename':'r'}",
        "{'driver':'raw','file':'x','file.filename':'r'}",
    ] {
        let name = format!("json:{json}");
        let message = ImageName::from_filename(&name).unwrap_err();
        let run = reference.run_args(&["info", &name]);
        assert_eq!(run.stderr, format!("qemu-img: Could not open '{name}': {message}\n"));
    }
}

#[test]
fn deep_nesting_is_refused_at_the_same_depth() {
    let reference = Reference::new();
    for depth in [1024, 1025] {
        let name = format!("json:{}{}", "[".repeat(depth), "]".repeat(depth));
        let message = ImageName::from_filename(&name).unwrap_err();
        let run = reference.run_args(&["info", &name]);
        assert_eq!(run.stderr, format!("qemu-img: Could not open '{name}': {message}\n"));
    }
}

#[test]
fn nodes_without_a_plain_name_are_shown_in_the_same_order() {
    let reference = Reference::new();
    reference.make("create -q -f raw r 1M");
    for list in [
        "driver=raw,file.driver=file,file.filename=r,size=1k,offset=512",
        "file.driver=raw,file.file.driver=file,file.file.filename=r,file.offset=0,file.size=4096,driver=raw,size=512",
        "driver=raw,offset=512,file.driver=null-co,file.read-zeroes=on,file.size=64k",
    ] {
        let (name, _) = ImageName::from_image_opts(list).unwrap();
        let run = reference.run_args(&["info", "--image-opts", list]);
        let shown = run.stdout.lines().next().expect("info prints something");
        assert_eq!(shown, format!("image: {}", json_filename(&name.options())), "{}", run.stderr);
    }
}

#[test]
fn image_options_warn_and_fail_in_the_words_of_the_reference() {
    let reference = Reference::new();
    reference.make("create -q -f qcow2 a 1M");
    for list in
        ["driver=qcow2,file.filename=a,lazy-refcounts", "driver=qcow2,file.filename=a,nolazy-refcounts"]
    {
        let (_, warnings) = ImageName::from_image_opts(list).unwrap();
        let expected: String = warnings.iter().map(|text| format!("qemu-img: warning: {text}\n")).collect();
        assert_eq!(reference.run_args(&["info", "--image-opts", list]).stderr, expected);
    }
    let list = "id=1,driver=raw,file.filename=a";
    let message = ImageName::from_image_opts(list).unwrap_err();
    assert_eq!(reference.run_args(&["info", "--image-opts", list]).stderr, format!("qemu-img: {message}\n"));
}

#[test]
fn strict_lists_fail_in_the_words_of_the_reference() {
    let reference = Reference::new();
    for rest in [
        "a.b=1,a=2",
        "a=1,a.b=2",
        "1=2",
        "a..b=2",
        ".a=1",
        "=x",
        "a.=x",
        "a.0=x,a.2=y",
        "a.0=x,a.b=y",
        "a.1b=1",
        "a b=1",
        "a.1=1",
        "0.a=1",
        "é=1",
        "foo",
        "a.00=1,a.2=1",
        "__org.x=1",
        "__org_=1",
        "a.b.0.c=1,a.b.0=2",
        "a.b.0.c=1,a.b.2.c=1",
        "a.1234567890=1",
        "foo,a=1",
        "-a=1",
        "a-=1,a_=2,a--b.c",
        "a,,b=1",
    ] {
        let object = format!("secret,id=s,data=xxxx,{rest}");
        let run = reference.run_args(&["create", "-q", "--object", &object, "a", "1M"]);
        let message =
            parse_keyval(&object, "qom-type").map_or_else(|error| error.to_string(), |_| "parsed".into());
        assert_eq!(run.stderr, format!("qemu-img: {message}\n"), "{object}");
    }
}

#[test]
fn the_same_option_lists_are_refused() {
    let reference = Reference::new();
    for list in ["", ",", "size=1M,", ",size=1M", "size=1M,,,", "size=1M"] {
        let run = reference.run_args(&["create", "-q", "-f", "qcow2", "-o", list, "a"]);
        let refused = run.stderr == format!("qemu-img: Invalid option list: {list}\n");
        assert_eq!(refused, !is_valid_list(list), "{list}: {}", run.stderr);
    }
}
