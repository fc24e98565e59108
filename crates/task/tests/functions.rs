//! Templates: the language, the functions and their bounds. Expected values are those that
//! Go and Sprig 2.22 document or give.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use task::{RunVariables, SecretText, Secrets, Seed, Values, Variables, render};

/// 2024-03-05T06:07:08Z
const STARTED: i64 = 1_709_618_828;

fn variables() -> Variables {
    let mut values = Values::from_file(
        "n: 5\nf: 2.5\nflag: false\nlist: [b, a, b]\nmap: {x: {y: z}}\nnothing: ~",
    )
    .unwrap();
    values.set("name=x y").unwrap();
    values.set("five=5").unwrap();
    let run = RunVariables {
        id: "ca1".to_owned(),
        registry: "contoso.azurecr.io".to_owned(),
        started: jiff::Timestamp::from_second(STARTED).unwrap(),
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        ..RunVariables::default()
    };
    Variables {
        run,
        values,
        now: jiff::Timestamp::from_second(STARTED).unwrap(),
        seed: Seed([7; 32]),
    }
}

fn rendered(text: &str) -> Result<String, String> {
    render(text, &variables(), &Secrets::new()).map_err(|error| error.message)
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let actual = rendered(&format!("{{{{{text}}}}}"));
        assert_eq!(actual.as_deref(), Ok(*expected), "{text}");
    }
}

#[track_caller]
fn check_fails(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let error = rendered(&format!("{{{{{text}}}}}")).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_cases_of_group_e() {
    let cases = [
        ("e01", "{{.Run.ID}}", "ca1"),
        ("e02", "{{.Build.ID}}", "ca1"),
        ("e03", "{{.Run.Date}}", "20240305-060708z"),
        ("e05", "{{.Run.Nope}}", ""),
        ("e06", "{{.Values.x}}", ""),
        ("e09", "{{.Values.x | default \"d\" | upper}}", "D"),
        ("e10", "{{.Secrets.x | b64enc}}", ""),
        ("e17", "{{if .Values.flag}}on{{else}}off{{end}}", "off"),
        ("e19", "{{.Values.map.x.y}}", "z"),
        ("e20", "{{add .Values.n 2}}", "7"),
        ("e21", "{{add .Values.five 2}}", "7"),
        ("e25", "a <no value>b {{.Values.x}}", "a b "),
        ("e26", "{{range $i, $e := list \"a\" \"b\"}}{{$i}}{{$e}} {{end}}", "0a 1b "),
        ("e30", "app:{{.Run.ID}}", "app:ca1"),
        ("e31", "app:{{.Values.x}}", "app:"),
        ("registry name", "{{.Run.RegistryName}}", "contoso"),
    ];
    for (case, text, expected) in cases {
        assert_eq!(rendered(text).as_deref(), Ok(expected), "{case}");
    }
    for (case, text) in [
        ("e07", "{{.Values.x.y}}"),
        ("e08", "{{.Values.x | upper}}"),
        ("e24", "{{ \"x\" }"),
        ("member of a text", "{{.Values.name.y}}"),
        ("member of a variable", "{{$x := .Values.x}}{{$x.y}}"),
        ("member of a result", "{{(index .Values \"x\").y}}"),
    ] {
        assert!(rendered(text).is_err(), "{case}");
    }
    assert!("app:".parse::<oci::Reference>().is_err(), "e31");
    let mut port = variables();
    port.run.registry = "localhost:5000".to_owned();
    let text = "{{.Run.RegistryName}}";
    assert_eq!(render(text, &port, &Secrets::new()).unwrap(), "localhost:5000", "e04");
}

#[test]
fn values_are_set_as_texts_and_the_last_one_counts() {
    let with = |sets: &[&str], text: &str| {
        let mut values = Values::from_file("a: 1").unwrap();
        for set in sets {
            values.set(set).unwrap();
        }
        render(text, &Variables { values, ..variables() }, &Secrets::new()).unwrap()
    };
    assert_eq!(with(&["a=b=c"], "{{.Values.a}}"), "b=c", "e11");
    assert_eq!(with(&["a="], "[{{.Values.a}}]"), "[]", "e12");
    assert_eq!(with(&["a=1", "a=2"], "{{.Values.a}}"), "2", "e14");
    assert_eq!(with(&["a=1,b=2"], "{{.Values.a}}"), "1,b=2", "e15");
    let flag = "{{if .Values.flag}}on{{else}}off{{end}}";
    assert_eq!(with(&["flag=false"], flag), "on", "e16");
    assert_eq!(with(&["a=2"], "{{.Values.a}}"), "2", "e18");
    assert_eq!(with(&["a.b=2"], "{{index .Values \"a.b\"}}"), "2", "a name is no path");
    let json = "{{.ValuesJSON}}";
    assert_eq!(with(&["b=2"], json), "'{\"a\":1,\"b\":\"2\"}'");
    assert_eq!(with(&["b=2", "a=1"], json), "'{\"a\":\"1\",\"b\":\"2\"}'", "e22");
    assert_eq!(with(&["a=it's"], "{{.ValuesJSON}}"), r#"'{"a":"it'"'"'s"}'"#, "e23");
    let run = with(&[], "{{.RunJSON}}");
    assert!(run.starts_with(r#"'{"Architecture":"amd64","Branch":"","Commit":"#), "{run}");
    assert_eq!(with(&["a=<&>"], "{{.ValuesJSON}}"), r#"'{"a":"\u003c\u0026\u003e"}'"#);
    let error = |entry: &str| Values::default().set(entry).unwrap_err().message;
    assert!(error("=x").contains("needs a name"), "e13");
    assert!(error("x").contains("is not `NAME=VALUE`"));
    assert!(Values::from_file("[a]").unwrap_err().message.contains("must be a map"));
    assert!(Values::from_file("").is_ok() && Values::from_file("{a: [").is_err());
    let large = format!("a={}", "x".repeat(1 << 20));
    assert!(Values::default().set(&large).is_err());
    assert!(format!("{:?}", variables().values).starts_with("{\"f\", \"flag\""));
}

#[test]
fn texts() {
    check(&[
        ("hello", "Hello!"),
        ("trim \"   hello    \"", "hello"),
        ("trimAll \"$\" \"$5.00\"", "5.00"),
        ("trimall \"$\" \"$5.00$\"", "5.00"),
        ("trimSuffix \"-\" \"hello-\"", "hello"),
        ("trimPrefix \"-\" \"-hello\"", "hello"),
        ("upper \"hello\"", "HELLO"),
        ("lower \"HELLO\"", "hello"),
        ("title \"hello world-wide don't\"", "Hello World-Wide Don'T"),
        ("untitle \"Hello World\"", "hello world"),
        ("repeat 3 \"hello\"", "hellohellohello"),
        ("repeat -1 \"hello\"", ""),
        ("substr 0 5 \"hello world\"", "hello"),
        ("substr 6 -1 \"hello world\"", "world"),
        ("substr -1 5 \"hello world\"", "hello"),
        ("nospace \"hello w o r l d\"", "helloworld"),
        ("trunc 5 \"hello world\"", "hello"),
        ("trunc 50 \"hello\"", "hello"),
        ("abbrev 5 \"hello world\"", "he..."),
        ("abbrev 3 \"hello world\"", "hello world"),
        ("abbrevboth 5 10 \"1234 5678 9123\"", "...5678..."),
        ("abbrevboth 0 7 \"1234 5678 9123\"", "1234..."),
        ("initials \"First Try\"", "FT"),
        ("contains \"cat\" \"catch\"", "true"),
        ("hasPrefix \"cat\" \"catch\"", "true"),
        ("hasSuffix \"cat\" \"catch\"", "false"),
        ("quote \"a\\\"b\" 1", "\"a\\\"b\" \"1\""),
        ("squote \"a\" true", "'a' 'true'"),
        ("cat \"hello\" \"beautiful\" 1 nil \"world\"", "hello beautiful 1 world"),
        ("indent 4 \"a\\nb\"", "    a\n    b"),
        ("nindent 2 \"a\\nb\"", "\n  a\n  b"),
        ("\"I Am Henry VIII\" | replace \" \" \"-\"", "I-Am-Henry-VIII"),
        ("replace \"\" \"-\" \"ab\"", "-a-b-"),
        ("len \"foo\" | plural \"one\" \"many\"", "many"),
        ("plural \"one\" \"many\" 1", "one"),
        ("toString 1", "1"),
        ("toString .Values.list", "[b a b]"),
        ("swapcase \"This Is A.Test\"", "tHIS iS a.tEST"),
        ("snakecase \"FirstName\"", "first_name"),
        ("snakecase \"HTTPServer\"", "http_server"),
        ("snakecase \"NoHTTPS\"", "no_https"),
        ("snakecase \"GO_PATH\"", "go_path"),
        ("snakecase \"GO PATH\"", "go_path"),
        ("snakecase \"GO-PATH\"", "go_path"),
        ("snakecase \"http2xx\"", "http_2xx"),
        ("snakecase \"HTTP20xOK\"", "http_20x_ok"),
        ("snakecase \"Duration2m3s\"", "duration_2m3s"),
        ("snakecase \"Bld4Floor3rd\"", "bld4_floor_3rd"),
        ("kebabcase \"FirstName\"", "first-name"),
        ("camelcase \"http_server\"", "HttpServer"),
        ("camelcase \"some words\"", "SomeWords"),
        ("camelcase \"GOLANG_IS_GREAT\"", "GolangIsGreat"),
        ("camelcase \"_complex__case_\"", "_Complex_Case_"),
        ("wrap 5 \"one two three four\"", "one\ntwo\nthree\nfour"),
        ("wrap 3 \"longest word\"", "longest\nword"),
        ("wrapWith 5 \"\\t\" \"Hello World\"", "Hello\tWorld"),
        ("wrapWith 3 \"|\" \"longest\"", "lon|ges|t"),
        ("print \"a\" 1 2 true", "a1 2 true"),
        ("printf \"%05d|%-4s|%q\" 42 \"a\" \"b\"", "00042|a   |\"b\""),
        ("println 1 2", "1 2\n"),
        ("html \"<a&b>\"", "&lt;a&amp;b&gt;"),
        ("js \"it's\"", "it\\'s"),
        ("urlquery \"a b&c\"", "a+b%26c"),
        ("env \"PATH\"", ""),
        ("expandenv \"$PATH\"", ""),
        ("getHostByName \"localhost\"", ""),
    ]);
    check_fails(&[
        ("upper 1", "`upper`: argument 1 must be a string, not int"),
        ("trunc -1 \"a\"", "negative"),
        ("substr 5 2 \"hello\"", "no part from 5 to 2"),
        ("trim", "`trim` takes 1 arguments, not 0"),
        ("uper \"a\"", "there is no function `uper`"),
        ("genCA \"a\" 1", "there is no function `genCA`"),
    ]);
}

#[test]
fn paths_and_addresses() {
    check(&[
        ("base \"foo/bar/baz\"", "baz"),
        ("base \"\"", "."),
        ("base \"//\"", "/"),
        ("dir \"foo/bar/baz\"", "foo/bar"),
        ("dir \"foo\"", "."),
        ("clean \"foo/bar/../baz\"", "foo/baz"),
        ("ext \"foo.tar.gz\"", ".gz"),
        ("ext \"a.b/c\"", ""),
        ("isAbs \"/a\"", "true"),
        (
            "$u := urlParse \"http://admin:secret@server.com:8080/api?list=false#anchor\"}}\
             {{$u.scheme}} {{$u.host}} {{$u.hostname}} {{$u.path}} {{$u.query}} {{$u.userinfo}} {{$u.fragment",
            "http server.com:8080 server.com /api list=false admin:secret anchor",
        ),
        ("(urlParse \"mailto:a@b\").opaque", "a@b"),
        (
            "urlJoin (dict \"fragment\" \"fragment\" \"host\" \"host:80\" \"path\" \"/path\" \"query\" \"query\" \"scheme\" \"http\")",
            "http://host:80/path?query#fragment",
        ),
        ("urlJoin (urlParse \"https://u:p@h/x?q=1#f\")", "https://u:p@h/x?q=1#f"),
        ("urlJoin (urlParse \"mailto:a@b\")", "mailto:a@b"),
        ("urlJoin (urlParse \"/only/path\")", "/only/path"),
    ]);
    check_fails(&[
        ("urlParse \":x\"", "no scheme"),
        ("urlJoin (dict \"host\" 1)", "`host` must be"),
    ]);
}

#[test]
fn encodings() {
    check(&[
        ("sha1sum \"Hello world!\"", "d3486ae9136e7856bc42212385ea797094475802"),
        (
            "sha256sum \"Hello world!\"",
            "c0535e4be2b79ffd93291305436bf889314e4a3faec05ecffcbb7df31ad9e51a",
        ),
        ("adler32sum \"Hello world!\"", "487130206"),
        ("b64enc \"hello\"", "aGVsbG8="),
        ("b64enc 5", "NQ=="),
        ("b64dec \"aGVsbG8=\"", "hello"),
        ("b64dec \"a!\"", "illegal base64 data at input byte 1"),
        ("b32enc \"foobar\"", "MZXW6YTBOI======"),
        ("b32enc \"fooba\"", "MZXW6YTB"),
        ("b32dec \"MZXW6YTBOI======\"", "foobar"),
        ("b32dec \"mz======\"", "illegal base32 data at input byte 0"),
        ("b32dec (b32enc \"a\")", "a"),
        ("toJson .Values.list", "[\"b\",\"a\",\"b\"]"),
        (
            "toJson (dict \"b\" 1.5 \"a\" 2.0 \"c\" nil \"<\" true)",
            r#"{"\u003c":true,"a":2,"b":1.5,"c":null}"#,
        ),
        ("toPrettyJson (dict \"a\" (list 1))", "{\n  \"a\": [\n    1\n  ]\n}"),
    ]);
}

#[test]
fn numbers() {
    check(&[
        ("atoi \"42\"", "42"),
        ("atoi \"x\"", "0"),
        ("int 3.7", "3"),
        ("int64 \"10\"", "10"),
        ("float64 \"3.5\"", "3.5"),
        ("toDecimal \"777\"", "511"),
        ("toDecimal 777", "511"),
        ("add 1 2 3", "6"),
        ("add1 5", "6"),
        ("sub 5 7", "-2"),
        ("div 7 2", "3"),
        ("mod 7 4", "3"),
        ("mul 2 3 4", "24"),
        ("max 1 9 3", "9"),
        ("biggest 1 2", "2"),
        ("min 4 2 8", "2"),
        ("ceil 123.001", "124"),
        ("floor 123.9999", "123"),
        ("round 123.555555 3", "123.556"),
        ("round 123.5555 3 0.6", "123.555"),
        ("until 5", "[0 1 2 3 4]"),
        ("until -3", "[0 -1 -2]"),
        ("untilStep 3 6 2", "[3 5]"),
        ("untilStep 0 -10 -3", "[0 -3 -6 -9]"),
        ("untilStep 3 6 -1", "[]"),
        ("add 9223372036854775807 1", "-9223372036854775808"),
    ]);
    check_fails(&[("div 1 0", "division by zero"), ("mod 1 0", "division by zero")]);
}

#[test]
fn lists_and_dicts() {
    check(&[
        ("list 1 2 3", "[1 2 3]"),
        ("tuple 1 \"a\"", "[1 a]"),
        ("first (list 1 2)", "1"),
        ("last (list 1 2)", "2"),
        ("rest (list 1 2 3)", "[2 3]"),
        ("initial (list 1 2 3)", "[1 2]"),
        ("append (list 1) 2", "[1 2]"),
        ("push (list 1) (list 2)", "[1 [2]]"),
        ("prepend (list 1) 0", "[0 1]"),
        ("concat (list 1) (list) (list 2 3)", "[1 2 3]"),
        ("reverse (list 1 2)", "[2 1]"),
        ("uniq (list 1 1 2 1)", "[1 2]"),
        ("without (list 1 2 3) 1 3", "[2]"),
        ("has 4 (list 1 4)", "true"),
        ("has 4 nil", "false"),
        ("slice (list 1 2 3 4) 1 3", "[2 3]"),
        ("slice (list 1 2 3) 1", "[2 3]"),
        ("slice \"abc\" 1", "bc"),
        ("sortAlpha (list \"c\" \"a\" \"b\")", "[a b c]"),
        ("join \"-\" (list \"a\" 1 nil true)", "a-1-true"),
        ("join \"-\" \"x\"", "x"),
        ("toStrings (list 1 2)", "[1 2]"),
        ("splitList \"$\" \"foo$bar$baz\"", "[foo bar baz]"),
        ("splitList \"\" \"abc\"", "[a b c]"),
        ("(split \"$\" \"foo$bar\")._1", "bar"),
        ("(splitn \"$\" 2 \"foo$bar$baz\")._1", "bar$baz"),
        ("compact (list 0 1 \"\" \"a\" nil false)", "[1 a]"),
        ("dict \"a\" 1 \"b\"", "map[a:1 b:]"),
        ("hasKey (dict \"a\" 1) \"a\"", "true"),
        ("pluck \"a\" (dict \"a\" 1) (dict \"b\" 1) (dict \"a\" 2)", "[1 2]"),
        ("keys (dict \"b\" 1 \"a\" 1) (dict \"c\" 1)", "[a b c]"),
        ("values (dict \"b\" 1 \"a\" 2)", "[2 1]"),
        ("pick (dict \"a\" 1 \"b\" 2) \"b\" \"x\"", "map[b:2]"),
        ("omit (dict \"a\" 1 \"b\" 2) \"b\"", "map[a:1]"),
        ("merge (dict \"a\" 1 \"b\" 0) (dict \"a\" 2 \"b\" 2 \"c\" 3)", "map[a:1 b:2 c:3]"),
        ("mergeOverwrite (dict \"a\" 1) (dict \"a\" 2 \"c\" 3)", "map[a:2 c:3]"),
        (
            "merge (dict \"m\" (dict \"x\" 1)) (dict \"m\" (dict \"x\" 2 \"y\" 2))",
            "map[m:map[x:1 y:2]]",
        ),
        ("deepCopy (dict \"a\" 1)", "map[a:1]"),
        ("$d := dict \"a\" 1}}{{$_ := set $d \"b\" 2}}{{$d", "map[a:1 b:2]"),
        ("$d := dict \"a\" 1}}{{set $d \"b\" 2", "map[a:1 b:2]"),
        ("$d := dict \"a\" 1}}{{$_ := unset $d \"a\"}}{{$d", "map[]"),
        ("$d := dict}}{{range list \"a\" \"b\"}}{{$_ := set $d . 1}}{{end}}{{$d", "map[a:1 b:1]"),
        ("set (dict \"a\" 1) \"b\" 2", "map[a:1 b:2]"),
    ]);
    check_fails(&[
        ("first \"a\"", "must be a list"),
        ("slice (list 1) 0 5", "only 1 elements"),
        ("set 1 \"a\" 1", "must be a dict"),
    ]);
}

#[test]
fn choices_and_types() {
    check(&[
        ("default \"d\" 0", "d"),
        ("default \"d\" \"x\"", "x"),
        ("default \"d\"", "d"),
        ("empty \"\"", "true"),
        ("coalesce 0 \"\" \"x\" 1", "x"),
        ("ternary \"a\" \"b\" true", "a"),
        ("false | ternary \"a\" \"b\"", "b"),
        ("typeOf \"a\"", "string"),
        ("typeOf (list)", "[]interface {}"),
        ("typeOf nil", "<nil>"),
        ("typeIs \"string\" \"a\"", "true"),
        ("typeIsLike \"int\" 1", "true"),
        ("kindOf (dict)", "map"),
        ("kindOf (list)", "slice"),
        ("kindIs \"float64\" 1.5", "true"),
        ("deepEqual (list 1 (list 2)) (list 1 (list 2))", "true"),
        ("eq 1 2 1", "true"),
        ("ne \"a\" \"b\"", "true"),
        ("lt 1 2", "true"),
        ("le 2 2", "true"),
        ("gt 1 2", "false"),
        ("ge \"b\" \"a\"", "true"),
        ("and 1 0 2", "0"),
        ("or 0 \"x\"", "x"),
        ("not 0", "true"),
        ("len .Values.list", "3"),
        ("index .Values.list 1", "a"),
    ]);
    check_fails(&[
        ("fail \"stop here\"", "`fail`: stop here"),
        ("ternary 1 2 3", "must be a bool"),
    ]);
}

#[test]
fn dates() {
    check(&[
        ("now", "2024-03-05 06:07:08 +0000 UTC"),
        ("now | date \"2006-01-02\"", "2024-03-05"),
        (
            "now | date \"Mon, 2 Jan 06 3:4:5PM .000 Z07:00 -0700\"",
            "Tue, 5 Mar 24 6:7:8AM .000 Z +0000",
        ),
        ("now | date \"Monday January _2 002 15h03 pm\"", "Tuesday March  5 065 06h06 am"),
        ("date \"2006\" 0", "1970"),
        ("dateInZone \"15:04 MST -07:00\" now \"America/New_York\"", "01:07 EST -05:00"),
        ("date_in_zone \"15:04\" now \"No/Where\"", "06:07"),
        ("now | dateModify \"-1.5h\" | date \"15:04:05\"", "04:37:08"),
        ("now | date_modify \"1h30m\" | date \"15:04:05\"", "07:37:08"),
        ("now | dateModify \"soon\" | date \"15:04:05\"", "06:07:08"),
        ("htmlDate now", "2024-03-05"),
        ("htmlDateInZone now \"Asia/Tokyo\"", "2024-03-05"),
        ("unixEpoch now", "1709618828"),
        ("toDate \"2006-01-02\" \"2017-12-31\" | date \"02/01/2006\"", "31/12/2017"),
        ("toDate \"2006-01-02\" \"nonsense\"", "0001-01-01 00:00:00 +0000 UTC"),
        (
            "toDate \"2006-01-02T15:04:05-07:00\" \"2024-01-01T00:00:00+02:00\" | unixEpoch",
            "1704060000",
        ),
        ("ago (now | dateModify \"-3725s\")", "1h2m5s"),
        ("ago 1709618828", "0s"),
    ]);
}

#[test]
fn regular_expressions() {
    check(&[
        ("regexMatch \"[A-Za-z0-9._%+-]+@[a-z]+\" \"test@acme\"", "true"),
        ("regexFindAll \"[2,4,6,8]\" \"123456789\" -1", "[2 4 6 8]"),
        ("regexFindAll \"[2,4,6,8]\" \"123456789\" 2", "[2 4]"),
        ("regexFind \"[a-zA-Z][1-9]\" \"abcd1234\"", "d1"),
        ("regexReplaceAll \"a(x*)b\" \"-ab-axxb-\" \"${1}W\"", "-W-xxW-"),
        ("regexReplaceAllLiteral \"a(x*)b\" \"-ab-axxb-\" \"${1}\"", "-${1}-${1}-"),
        ("regexSplit \"z+\" \"pizza\" -1", "[pi a]"),
        ("regexSplit \"a*\" \"abaabaccadaaae\" 5", "[ b b c cadaaae]"),
        ("regexSplit \"z\" \"pizza\" 0", "[]"),
        ("regexSplit \"z\" \"\" -1", "[]"),
    ]);
    check_fails(&[
        ("regexFind \"(\" \"a\"", "is not a regular expression"),
        ("regexFind \"(a{1000}){1000}\" \"a\"", "too large"),
    ]);
}

#[test]
fn versions() {
    check(&[
        ("(semver \"v1.2.3-beta.1+ABC\").Prerelease", "beta.1"),
        ("(semver \"1.2\").Patch", "0"),
        ("semverCompare \"1.2.3\" \"1.2.3\"", "true"),
        ("semverCompare \"1.2.3\" \"1.2.4\"", "false"),
        ("semverCompare \"1.2\" \"1.2.9\"", "true"),
        ("semverCompare \"^1.2.0\" \"1.9.9\"", "true"),
        ("semverCompare \"^1.2.0\" \"2.0.0\"", "false"),
        ("semverCompare \"^0.2.3\" \"0.3.0\"", "true"),
        ("semverCompare \"^0.0.3\" \"0.0.3\"", "true"),
        ("semverCompare \"^0\" \"0.9.0\"", "true"),
        ("semverCompare \"~1.2.3\" \"1.2.9\"", "true"),
        ("semverCompare \"~1.2.3\" \"1.3.0\"", "false"),
        ("semverCompare \"~1\" \"1.9.0\"", "true"),
        ("semverCompare \">=1.2, <3.0.0\" \"2.9.9\"", "true"),
        ("semverCompare \">=1.2, <3.0.0 || >= 4.2.3\" \"4.2.3\"", "true"),
        ("semverCompare \"1.2 - 1.4.5\" \"1.4.5\"", "true"),
        ("semverCompare \"1.2.x\" \"1.3.0\"", "false"),
        ("semverCompare \">1.2\" \"1.2.5\"", "true"),
        ("semverCompare \"<=2.x\" \"2.9.0\"", "true"),
        ("semverCompare \"<=1.2.x\" \"0.5.0\"", "true"),
        ("semverCompare \"<1.2.3\" \"1.2.3\"", "false"),
        ("semverCompare \"~0.0.0\" \"5.0.0\"", "true"),
        ("semverCompare \"= 1.2.3+a\" \"1.2.3+b\"", "true"),
        ("semverCompare \"!=1.2.x\" \"1.2.5\"", "false"),
        ("semverCompare \"*\" \"9.9.9\"", "true"),
        ("semverCompare \">=1.0\" \"1.1.0-beta\"", "false"),
        ("semverCompare \">=1.0-0\" \"1.1.0-beta\"", "true"),
        ("semverCompare \"1.0.0-beta\" \"1.0.0-beta\"", "true"),
    ]);
    check_fails(&[
        ("semver \"1.2.3.4\"", "`1.2.3.4` is not a version"),
        ("semver \"1.x\"", "`1.x` is not a version"),
        ("semver \"one\"", "`one` is not a version"),
        ("semverCompare \"=>>1\" \"1.0.0\"", "is not a constraint"),
    ]);
}

#[test]
fn random_texts_come_from_the_seed() {
    let twice = "{{randAlphaNum 8}} {{randAlpha 8}} {{randNumeric 8}} {{randAscii 8 | len}} {{shuffle \"abc\" | len}}";
    let first = rendered(twice).unwrap();
    assert_eq!(rendered(twice).unwrap(), first);
    let other = Variables { seed: Seed([8; 32]), ..variables() };
    assert_ne!(render(twice, &other, &Secrets::new()).unwrap(), first);
    assert!(!rendered(&format!("{twice} ")).unwrap().starts_with(&first), "another text");
    assert!(!format!("{other:?}").contains("8, 8"), "a seed is printed");
    let words: Vec<&str> = first.split(' ').collect();
    assert!(words[0].len() == 8 && words[1].chars().all(|c| c.is_ascii_alphabetic()), "{first}");
    assert!(words[2].chars().all(|c| c.is_ascii_digit()), "{first}");
    assert_eq!(&words[3..], ["8", "3"]);
}

#[test]
fn hostile_templates_end_soon() {
    let exponential = "{{define \"a\"}}{{if lt (len .) 100}}{{template \"a\" (print . \"x\")}}\
                       {{template \"a\" (print . \"x\")}}{{end}}{{end}}{{template \"a\" \"\"}}";
    let mut silent = String::from("{{define \"t0\"}}{{end}}");
    for level in 1..60 {
        let below = level - 1;
        silent += &format!(
            "{{{{define \"t{level}\"}}}}{{{{template \"t{below}\"}}}}{{{{template \"t{below}\"}}}}{{{{end}}}}"
        );
    }
    silent += "{{template \"t59\"}}";
    let doubling = |first: &str, step: &str| {
        format!("{{{{$x := {first}}}}}{}", format!("{{{{$x = {step}}}}}").repeat(60))
    };
    let cases = [
        "{{range untilStep 0 1000000000 1}}{{end}}".to_owned(),
        "{{range 1000000000}}x{{end}}".to_owned(),
        "{{range 100000}}{{range 100000}}{{end}}{{end}}".to_owned(),
        format!("{{{{range 1000000}}}}{{{{and {}}}}}{{{{end}}}}", "1 ".repeat(10_000)),
        "{{repeat 1000000000 \"x\"}}".to_owned(),
        "{{until 1000000000}}".to_owned(),
        "{{indent 1000000000 \"x\"}}".to_owned(),
        "{{randAlphaNum 1000000000}}".to_owned(),
        "{{$x := repeat 100000 \"ab\"}}{{replace \"a\" $x $x}}".to_owned(),
        "{{$x := repeat 100000 \"ab\"}}{{regexReplaceAll \"a\" $x $x}}".to_owned(),
        "{{$x := repeat 100000 \"ab\"}}{{regexReplaceAll \"(a|b)+\" $x (repeat 1000 \"$0\")}}"
            .to_owned(),
        "{{$x := repeat 100000 \"ab\"}}{{join $x (until 100000)}}".to_owned(),
        "{{$x := repeat 100000 \"ab\"}}{{wrapWith 1 $x $x}}".to_owned(),
        "{{$x := repeat 100000 \"ab\"}}{{range 1000000}}{{eq $x $x}}{{end}}".to_owned(),
        "{{$x := until 100000}}{{uniq $x}}".to_owned(),
        "{{range 1000000}}{{regexMatch \"a*b*c*\" \"x\"}}{{end}}".to_owned(),
        format!("{{{{printf \"{}\" 1}}}}", "%[1]065000d".repeat(10_000)),
        "{{define \"a\"}}{{template \"a\"}}{{end}}{{template \"a\"}}".to_owned(),
        exponential.to_owned(),
        silent,
        doubling("\"a\"", "print $x $x"),
        doubling("\"a\"", "printf \"%s%s\" $x $x"),
        doubling("\"a\"", "cat $x $x"),
        doubling("list 1", "list $x $x"),
        doubling("list 1", "concat $x $x"),
        doubling("dict \"a\" 1", "dict \"a\" $x \"b\" $x"),
        doubling("list 1", "list $x"),
        format!("{{{{1}}}}{}", "{{if 1}}".repeat(5000)),
        format!("{{{{{}1{}}}}}", "(".repeat(5000), ")".repeat(5000)),
        format!("{{{{if 0}}}}{}{{{{end}}}}", "{{else if 0}}".repeat(50_000)),
    ];
    for text in cases {
        let started = Instant::now();
        let shown: String = text.chars().take(80).collect();
        let error = rendered(&text).expect_err(&shown);
        assert!(started.elapsed() < Duration::from_secs(20), "{shown}: {:?}", started.elapsed());
        assert!(error.starts_with("template: "), "{shown}: {error}");
    }
}

#[test]
fn what_is_rendered_has_a_bound() {
    let text = "{{$x := repeat 100000 \"ab\"}}{{range N}}{{$x}}{{end}}";
    assert_eq!(rendered(&text.replace('N', "20")).unwrap().len(), 4_000_000);
    let error = rendered(&text.replace('N', "21")).unwrap_err();
    assert_eq!(error, "template: it renders to more than 4194304 bytes");
}

#[test]
fn templates_are_defined_as_in_go() {
    let cases = [
        ("{{define \"a\"}}[{{.}}]{{end}}{{template \"a\" 1}}{{template \"a\"}}", "[1][]"),
        ("{{block \"a\" 1}}[{{.}}]{{end}}", "[1]"),
        ("{{define \"a\"}}x{{end}}{{define \"a\"}} {{end}}{{template \"a\"}}", "x"),
        ("{{define \"a\"}} {{end}}{{define \"a\"}}x{{end}}{{template \"a\"}}", "x"),
        ("{{range list 1 2 3}}{{if eq . 2}}{{continue}}{{end}}{{.}}{{end}}", "13"),
        ("{{range list 1 2 3}}{{if eq . 2}}{{break}}{{end}}{{.}}{{end}}", "1"),
        ("{{with .Values.map}}{{.x.y}}{{else}}none{{end}}", "z"),
        ("{{range list 1}}{{$.Run.ID}}{{end}}", "ca1"),
        ("{{with $x := 1}}{{$x}}{{end}}{{/* none */}}", "1"),
        ("a {{- 1 -}} b", "a1b"),
        ("{{range $k, $v := .Values.map.x}}{{$k}}={{$v}}{{else}}none{{end}}", "y=z"),
    ];
    for (text, expected) in cases {
        assert_eq!(rendered(text).as_deref(), Ok(expected), "{text}");
    }
    let twice = "{{define \"a\"}}x{{end}}{{define \"a\"}}y{{end}}";
    assert!(rendered(twice).unwrap_err().contains("`a` is defined twice"));
    assert!(rendered("{{template \"a\"}}").is_err());
}

#[test]
fn ordinary_templates_are_far_from_the_bounds() {
    let text = "{{range $i := until 2000}}{{$i}}: {{printf \"%04d\" $i | upper}}\n{{end}}";
    assert_eq!(rendered(text).unwrap().lines().count(), 2000);
    let nested = format!("{{{{if 1}}}}{}{{{{end}}}}", "{{else if 0}}".repeat(300));
    assert_eq!(rendered(&nested).as_deref(), Ok(""));
    let long = "{{.Run.ID}}\n".repeat(20_000);
    assert_eq!(rendered(&long).unwrap().lines().count(), 20_000);
}

/// Functions of task-yaml.md section 6.1, and of Go.
const NAMES: &str = "abbrev abbrevboth trunc trim trimAll trimall trimSuffix trimPrefix upper lower \
    title untitle substr repeat nospace initials randAlphaNum randAlpha randAscii randNumeric swapcase \
    shuffle snakecase camelcase kebabcase wrap wrapWith contains hasPrefix hasSuffix quote squote cat \
    indent nindent replace plural toString sha1sum sha256sum adler32sum b64enc b64dec b32enc b32dec \
    atoi int int64 float64 toDecimal add add1 sub div mod mul max biggest min ceil floor round until \
    untilStep list tuple first rest last initial append push prepend concat reverse uniq without has \
    slice sortAlpha join split splitList splitn toStrings dict set unset hasKey pluck keys values pick \
    omit merge mergeOverwrite deepCopy default empty coalesce compact ternary fail toJson toPrettyJson \
    typeOf typeIs typeIsLike kindOf kindIs deepEqual now date dateInZone date_in_zone dateModify \
    date_modify ago toDate unixEpoch htmlDate htmlDateInZone base dir clean ext isAbs urlParse urlJoin \
    semver semverCompare regexMatch regexFind regexFindAll regexReplaceAll regexReplaceAllLiteral \
    regexSplit hello env expandenv getHostByName and or not eq ne lt le gt ge len index print printf \
    println html js urlquery call";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A call gives a value or an error of its own, whatever it is given.
    #[test]
    fn no_call_panics(
        name in proptest::sample::select(NAMES.split_whitespace().collect::<Vec<_>>()),
        args in proptest::collection::vec(
            proptest::sample::select(vec![
                "0", "-1", "1", "3", "7", "9223372036854775807", "-9223372036854775807", "1.5", "-0.5",
                "1e300", "\"\"", "\"a\"", "\"é ü\\n x\"", "\"1.2\"", "\">=1.x\"", "\"-1h\"", "\"%[2]*.*d%q%v\"",
                "\"=\"", "\"(a*)\"", "\"$1\"", "\"2006-01-02T15:04:05.000Z07:00 MST\"", "\"://@[::1]:x#?\"",
                "nil", "true", "(list)", "(list 1 \"b\" nil)", "(dict)", "(dict \"host\" \"é\" \"a\" (list 1))",
                "now", "(split \"\" \"ab\")",
            ]),
            0..5,
        ),
    ) {
        let text = format!("{{{{{name} {}}}}}", args.join(" "));
        if let Err(error) = rendered(&text) {
            prop_assert!(!error.contains("panicked"), "{}: {}", text, error);
        }
    }
}

#[test]
fn errors_say_where_and_hide_secrets() {
    let error = render("a: 1\nb: {{upper 1}}\n", &variables(), &Secrets::new()).unwrap_err();
    assert_eq!((error.at.unwrap().line, error.at.unwrap().column), (2, 4));
    let secrets = Secrets::from([("s".to_owned(), SecretText::new("hunter2"))]);
    let error = render("{{fail .Secrets.s}}", &variables(), &secrets).unwrap_err();
    assert!(!error.render("acb.yaml", "").contains("hunter2"), "{error}");
    assert!(error.message.contains("***"));
    let error = render("{{fail (.Secrets.s | b64enc)}}", &variables(), &secrets).unwrap_err();
    assert_eq!(error.message, "template: `fail`: ***");
    let error = render("{{fail (repeat 100000 \"x\")}}", &variables(), &secrets).unwrap_err();
    assert!(error.message.len() < 3000);
    let error = render("{{uper \"a\"}}", &variables(), &Secrets::new()).unwrap_err();
    assert_eq!(error.hint.as_deref(), Some("did you mean `upper`?"));
}
