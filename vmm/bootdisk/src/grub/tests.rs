//! Scripts run on a disk without partitions: what they set, offer and choose.

use proptest::prelude::*;

use super::*;
use crate::error::Fault;
use crate::menu::{Boot, Menu};
use crate::volume::Volumes;

fn run(script: &str) -> Result<(Vec<String>, String, Boot), Fault> {
    let volumes = Volumes(Vec::new());
    let menu = GrubMenu::load(&volumes, 0, "/boot/grub/grub.cfg", script.as_bytes())?;
    let titles: Vec<_> = menu.items().iter().map(|item| item.title.clone()).collect();
    let chosen = titles.get(menu.default_index()).cloned().unwrap_or_default();
    Ok((titles, chosen, menu.boot(menu.default_index())?))
}

/// The command line the script boots with.
fn cmdline(script: &str) -> String {
    run(script).unwrap().2.cmdline
}

fn default_of(script: &str, default: &str) -> String {
    run(&format!("set default='{default}'\n{script}")).unwrap().1
}

#[test]
fn assignments_work_with_and_without_set() {
    assert_eq!(cmdline("set a=1\nb=\"2 3\"\nlinux /k $a $b \"$b\" ${none}x"), "1 2 3 \"2 3\" x");
    assert_eq!(cmdline("a=1; unset a; linux /k [$a]"), "[]");
}

#[test]
fn conditions_choose_one_arm() {
    let script = |value: &str| {
        format!(
            "a={value}\nif [ $a = 1 ]; then b=one\nelif [ $a = 2 ]\nthen b=two; else b=more; fi\nlinux /k $b"
        )
    };
    assert_eq!(["1", "2", "3"].map(|value| cmdline(&script(value))), ["one", "two", "more"]);
}

#[test]
fn negations_and_results_are_seen() {
    assert_eq!(cmdline("if ! false; then linux /k yes; fi"), "yes");
    assert_eq!(cmdline("false; if [ $? = 1 ]; then linux /k $?; fi"), "0");
}

#[test]
fn functions_have_their_own_arguments_and_return() {
    let script = "function f { if [ $# = 2 ]; then r=$2$1; return 1; fi; r=no }\nf a b\nlinux /k $r $? $1";
    assert_eq!(cmdline(script), "ba 1");
}

#[test]
fn loops_end_where_they_are_told() {
    let script = "for i in a b c d; do if [ $i = b ]; then continue; fi\nif [ $i = d ]; then break; fi\n\
                  all=$all$i\ndone\nuntil [ x$all = xac! ]; do all=$all!; done\nlinux /k $all";
    assert_eq!(cmdline(script), "ac!");
}

#[test]
fn commands_nobody_knows_succeed() {
    assert_eq!(cmdline("if loadfont unicode; then insmod gfxterm; linux /k fine; fi"), "fine");
}

#[test]
fn an_entrys_body_sees_what_the_script_set_and_runs_only_when_chosen() {
    let script = "a=1\nmenuentry 'X' --class x 'extra' { linux /k $a $1 $2; initrd /one /two; a=2 }\n\
                  menuentry 'Y' { linux /k $a }\na=3\n";
    let (titles, _, boot) = run(script).unwrap();
    assert_eq!(titles, ["X", "Y"]);
    assert_eq!(boot.cmdline, "3 X extra");
    assert_eq!(boot.initrds.iter().map(|p| p.path.as_str()).collect::<Vec<_>>(), ["/one", "/two"]);
}

const NESTED: &str = "menuentry 'A>1' --id a { linux /k }\n\
    submenu 'S' --id s { menuentry 'B' --id b { linux /k }\nsubmenu T { menuentry C { linux /k } } }\n\
    menuentry 'D' { linux /k }";

#[test]
fn submenus_are_listed_with_the_way_to_them() {
    assert_eq!(run(NESTED).unwrap().0, ["A>1", "S>B", "S>T>C", "D"]);
}

#[test]
fn a_default_is_a_number_a_title_an_id_or_a_way() {
    for (default, chosen) in [
        ("0", "A>1"),
        ("2", "D"),
        ("D", "D"),
        ("a", "A>1"),
        ("A>>1", "A>1"),
        ("1", "S>B"),
        ("1>1", "S>T>C"),
        ("s>b", "S>B"),
        ("S>T>C", "S>T>C"),
        ("9", "A>1"),
        ("gone", "A>1"),
        ("", "A>1"),
        ("s>gone", "S>B"),
    ] {
        assert_eq!(default_of(NESTED, default), chosen, "{default}");
    }
}

#[test]
fn a_script_without_entries_boots_what_it_loads() {
    let (titles, _, boot) = run("set root=hd7,3\nlinux (hd0,msdos5)/boot//k a\n").unwrap();
    assert_eq!(titles.len(), 1);
    let kernel = boot.kernel.unwrap();
    assert_eq!((kernel.device.as_str(), kernel.path.as_str()), ("hd0,msdos5", "/boot//k"));
}

#[test]
fn too_many_variables_or_too_long_ones_are_refused() {
    for script in [
        "a=0123456789abcdef; for i in 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8; do a=$a$a; done".to_owned(),
        format!("a={}\nb=$a; c=$a; d=$a; e=$a; f=$a\n", "x".repeat(60_000)),
        format!("a={}\necho $a $a $a $a $a $a\n", "x".repeat(60_000)),
        "eval ".repeat(30) + "true",
        "while true; do eval true; done".to_owned(),
    ] {
        let bounded = run(&script);
        assert!(script.starts_with("eval") || matches!(bounded, Err(Fault::Bound { .. })), "{:.40}", script);
    }
}

proptest! {
    #[test]
    fn any_text_is_survived(script in ".{0,300}") {
        fuzz(script.as_bytes());
    }

    #[test]
    fn any_words_of_the_language_are_survived(words in prop::collection::vec(prop::sample::select(vec![
        "if", "then", "else", "elif", "fi", "while", "do", "done", "for", "in", "function", "f", "{", "}", ";", "\n", "[",
        "]", "=", "a=$a", "\"$a\"", "$1", "!", "-f", "menuentry", "submenu", "linux", "initrd", "/k", "search", "--set=x",
        "eval", "source", "return", "break", "'", "\\", "blscfg", "default=0>1", "true", "false",
    ]), 0..60)) {
        fuzz(words.join(" ").as_bytes());
    }
}
