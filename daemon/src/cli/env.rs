//! `tpx env translate`: a pod's environment, usable on this laptop.

use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use serde_json::{Map, Value};

use super::{output::Output, simple};
use crate::{
    failure::{Failure, Kind},
    ipc::{Reply, Request, Variable},
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx env translate DB_URL=postgres://10.96.7.1:5432/shop
  tpx env translate --file pod.env > laptop.env
  kubectl exec deploy/shop -- env | tpx env translate --format json";

/// More than fits into any process's environment.
const MAX_BYTES: u64 = 4 << 20;

/// Arguments of `tpx env translate`.
#[derive(Args)]
pub(crate) struct TranslateArgs {
    /// A file of KEY=VALUE lines; comments and empty lines stay [default: standard input]
    #[arg(short, long, value_name = "F", conflicts_with = "variables")]
    file: Option<PathBuf>,
    /// Variables
    #[arg(value_name = "KEY=VALUE")]
    variables: Vec<String>,
}

/// Runs `tpx env translate`.
pub(crate) fn translate(out: &Output, name: &str, args: &TranslateArgs) -> Result<ExitCode, Failure> {
    let mut lines = read(args)?;
    let variables = lines.iter().filter_map(|line| if let Line::Variable(v) = line { Some(v.clone()) } else { None });
    let request = Request::TranslateEnv { variables: variables.collect() };
    let translated = match simple::client(name)?.ask(&request, &mut |_| {})? {
        Reply::Env(translated) => translated,
        other => return Err(simple::unexpected(&other)),
    };
    let places = lines.iter_mut().filter(|line| matches!(line, Line::Variable(_)));
    for (place, variable) in places.zip(&translated) {
        *place = Line::Variable(variable.clone());
    }
    let document: Map<String, Value> = translated.into_iter().map(|v| (v.name, v.value.into())).collect();
    out.result(&document, || lines.iter().map(Line::text).collect::<Vec<_>>().join("\n"));
    Ok(ExitCode::SUCCESS)
}

/// A line of an environment file.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Variable(Variable),
    /// Empty, or a comment.
    Other(String),
}

impl Line {
    fn text(&self) -> String {
        match self {
            Line::Variable(Variable { name, value }) => format!("{name}={value}"),
            Line::Other(text) => text.clone(),
        }
    }
}

fn read(args: &TranslateArgs) -> Result<Vec<Line>, Failure> {
    if !args.variables.is_empty() {
        let variable = |text: &String| variable(text).map(Line::Variable).map_err(|what| malformed("", text, what));
        return args.variables.iter().map(variable).collect();
    }
    let (from, read) = match &args.file {
        Some(path) => (path.display().to_string(), std::fs::File::open(path).and_then(text)),
        None if std::io::stdin().is_terminal() => {
            let next = "give KEY=VALUE, --file, or an environment on standard input";
            return Err(Failure::new(Kind::Usage, "there is nothing to translate", next));
        }
        None => ("standard input".to_owned(), text(std::io::stdin())),
    };
    let read = read.map_err(|e| {
        Failure::new(Kind::Usage, format!("cannot read {from}: {e}"), "give a text file of KEY=VALUE lines")
    })?;
    lines(&read, &from)
}

fn text(source: impl std::io::Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it is longer than 4 MiB"));
    }
    Ok(text)
}

fn lines(text: &str, from: &str) -> Result<Vec<Line>, Failure> {
    let line = |(index, text): (usize, &str)| {
        if text.trim().is_empty() || text.trim_start().starts_with('#') {
            return Ok(Line::Other(text.to_owned()));
        }
        variable(text).map(Line::Variable).map_err(|what| malformed(&format!("{from}:{}: ", index + 1), text, what))
    };
    text.lines().enumerate().map(line).collect()
}

/// `KEY=VALUE`; the value is all that follows, as in the environment itself.
fn variable(text: &str) -> Result<Variable, &'static str> {
    let (name, value) = text.split_once('=').ok_or("has no '='")?;
    let fine = |c: char| !c.is_whitespace() && !c.is_control() && c != '\'' && c != '"';
    if name.is_empty() || !name.chars().all(fine) {
        return Err("has no name that a variable can have in front of its '='");
    }
    Ok(Variable { name: name.to_owned(), value: value.to_owned() })
}

fn malformed(place: &str, text: &str, what: &str) -> Failure {
    let shown: String = text.chars().take(40).collect();
    Failure::new(Kind::Usage, format!("{place}{shown:?} {what}"), "write KEY=VALUE, one a line")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_form() {
        let text = "# pod\n\nDB=postgres://a=b\nEMPTY=\nkey.with-dots=1 2\n";
        let lines = lines(text, "pod.env").unwrap();
        assert_eq!(lines.iter().filter(|line| matches!(line, Line::Variable(_))).count(), 3);
        assert_eq!(lines.iter().map(Line::text).collect::<Vec<_>>().join("\n") + "\n", text);
        assert_eq!(variable("A=b=c").unwrap(), Variable { name: "A".into(), value: "b=c".into() });
    }

    #[test]
    fn a_line_that_is_no_variable_is_named() {
        let failure = lines("A=1\nexport B=2\n", "pod.env").unwrap_err();
        let said = "pod.env:2: \"export B=2\" has no name that a variable can have in front of its '='; write KEY=VALUE, one a line";
        assert_eq!(failure.to_string(), said);
        assert!(lines("A=1\nB\n", "pod.env").unwrap_err().what.starts_with("pod.env:2: \"B\" has no '='"));
        assert!(variable("=x").is_err());
    }
}
