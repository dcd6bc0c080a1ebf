//! Files of environment variables, as `tpx run --env-file` takes them.
//!
//! `KEY=VALUE` lines as a shell would read them, without its substitutions: `export ` in front, comments, single quotes
//! (all as it stands) and double quotes (with `\n`, `\t`, `\r`, `\"`, `\\`, `\$`). A value without quotes ends at ` #`.
//! `$` means itself: what stands for something in one program's dialect is no secret in another's.

use std::{io::Read as _, path::Path};

use crate::{
    failure::{Failure, Kind},
    ipc::Variable,
};

/// More than fits into any process's environment.
const MAX_BYTES: u64 = 4 << 20;

/// Reads a file.
///
/// # Errors
/// When it cannot be read, or a line is no variable; the error names it.
pub(crate) fn read(path: &Path) -> Result<Vec<Variable>, Failure> {
    let next = "give a text file of KEY=VALUE lines with --env-file";
    let fail =
        |why: &dyn std::fmt::Display| Failure::new(Kind::Usage, format!("cannot read {}: {why}", path.display()), next);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| fail(&e))?;
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|e| fail(&e))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(fail(&"it is longer than 4 MiB"));
    }
    parse(&text).map_err(|(line, what)| {
        Failure::new(Kind::Usage, format!("{}:{line}: {what}", path.display()), "write KEY=VALUE, one a line")
    })
}

/// The variables, or the number of the line that is none and why.
fn parse(text: &str) -> Result<Vec<Variable>, (usize, &'static str)> {
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        variables.push(variable(line).map_err(|what| (index + 1, what))?);
    }
    Ok(variables)
}

fn variable(line: &str) -> Result<Variable, &'static str> {
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let (name, value) = line.split_once('=').ok_or("there is no '='")?;
    let name = name.trim_end();
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(fine) {
        return Err("what stands in front of '=' is no name of a variable");
    }
    let value = value.trim_start();
    let value = match value.chars().next() {
        Some(quote @ ('\'' | '"')) => quoted(&value[1..], quote)?,
        _ => bare(value),
    };
    if value.contains('\0') {
        return Err("the value has a NUL in it, which no environment can hold");
    }
    Ok(Variable { name: name.to_owned(), value })
}

/// Up to a comment, which has a space in front.
fn bare(value: &str) -> String {
    let mut after_space = true;
    let end = value.char_indices().find(|(_, c)| {
        let is_comment = *c == '#' && after_space;
        after_space = c.is_whitespace();
        is_comment
    });
    value[..end.map_or(value.len(), |(at, _)| at)].trim_end().to_owned()
}

/// Up to the closing quote; only a comment may follow.
fn quoted(text: &str, quote: char) -> Result<String, &'static str> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next() {
            None => return Err("the quote is not closed on its line; write line breaks as \\n in double quotes"),
            Some(c) if c == quote => break,
            Some('\\') if quote == '"' => match chars.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some('r') => value.push('\r'),
                Some(c @ ('"' | '\\' | '$')) => value.push(c),
                _ => return Err("only \\n, \\t, \\r, \\\", \\\\ and \\$ mean something after a backslash"),
            },
            Some(c) => value.push(c),
        }
    }
    match chars.as_str().trim_start() {
        rest if rest.is_empty() || rest.starts_with('#') => Ok(value),
        _ => Err("something follows the closing quote"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_shells_read_them() {
        for (line, name, value) in [
            ("A=1", "A", "1"),
            ("  export\tA = 1 2  ", "A", "1 2"),
            ("exported=1", "exported", "1"),
            ("A=", "A", ""),
            ("A=# nothing", "A", ""),
            ("A=b#c # comment", "A", "b#c"),
            ("A='it is # \\n $HOME'", "A", "it is # \\n $HOME"),
            (r#"A="two\nlines \"and\" \$HOME" # comment"#, "A", "two\nlines \"and\" $HOME"),
            ("A=a=b=c", "A", "a=b=c"),
            ("URL=http://10.96.7.1:80/?q=ä", "URL", "http://10.96.7.1:80/?q=ä"),
            ("key.with-dots=1", "key.with-dots", "1"),
            ("A=$HOME", "A", "$HOME"),
        ] {
            assert_eq!(variable(line.trim()), Ok(Variable { name: name.into(), value: value.into() }), "{line}");
        }
        let all = parse("# pod\r\n\r\nA=1\r\n\tB='2'\n").unwrap();
        assert_eq!(
            all.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect::<Vec<_>>(),
            [("A", "1"), ("B", "2")]
        );
    }

    #[test]
    fn what_is_no_variable_is_named() {
        for (text, line, what) in [
            ("A=1\nB\n", 2, "no '='"),
            ("=1", 1, "no name"),
            ("1A=1", 1, "no name"),
            ("A B=1", 1, "no name"),
            ("\n\nA='1\n'", 3, "not closed"),
            ("A=\"1\" 2", 1, "follows"),
            (r#"A="\x""#, 1, "backslash"),
            ("A=a\0b", 1, "NUL"),
        ] {
            let (found, said) = parse(text).unwrap_err();
            assert!(found == line && said.contains(what), "{text:?}: {found}: {said}");
        }
    }

    #[test]
    fn a_file_is_named_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "A=1\nB\n").unwrap();
        let said = read(file.path()).unwrap_err().to_string();
        assert_eq!(said, format!("{}:2: there is no '='; write KEY=VALUE, one a line", file.path().display()));
        assert!(read(Path::new("/nonexistent")).unwrap_err().to_string().contains("--env-file"));
    }
}
