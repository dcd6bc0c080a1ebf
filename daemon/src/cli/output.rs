//! Printing: results to stdout in the chosen form, progress and errors to stderr, colour only on a terminal.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Format;
use crate::failure::Failure;

/// Where and how to print.
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Prints in this form.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints a result: `text` for people, `value` for programs.
    pub(crate) fn result<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) {
        let document = match self.format {
            Format::Text => text(),
            Format::Json => serde_json::to_string_pretty(value).unwrap_or_default(),
            Format::Yaml => serde_saphyr::to_string(value).unwrap_or_default(),
        };
        // A closed pipe (`tpx status | head`) is not an error worth a panic.
        let _ = writeln!(std::io::stdout(), "{}", document.trim_end());
    }

    /// Whether results are for people.
    pub(crate) fn is_text(&self) -> bool {
        self.format == Format::Text
    }

    /// Prints one of many results: JSON on one line each, YAML as a document of a stream.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub(crate) fn append<T: Serialize>(&self, value: &T, text: impl FnOnce() -> String) -> std::io::Result<()> {
        let document = match self.format {
            Format::Text => format!("{}\n", text().trim_end()),
            Format::Json => serde_json::to_string(value)?,
            Format::Yaml => format!("---\n{}", serde_saphyr::to_string(value).unwrap_or_default().trim_end()),
        };
        let mut out = std::io::stdout();
        writeln!(out, "{document}")?;
        out.flush()
    }

    /// Prints a failure: a line on stderr for people, a document on stdout for programs.
    pub(crate) fn failure(&self, failure: &Failure) {
        if self.format == Format::Text {
            let (red, plain) = if std::io::stderr().is_terminal() { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
            let _ = writeln!(std::io::stderr(), "{red}error:{plain} {failure}");
        } else {
            self.result(&serde_json::json!({ "error": failure }), String::new);
        }
    }

    /// Prints on stderr what is wrong but in nobody's way.
    pub(crate) fn warning(&self, failure: &Failure) {
        let (yellow, plain) = if std::io::stderr().is_terminal() { ("\x1b[1;33m", "\x1b[0m") } else { ("", "") };
        let _ = writeln!(std::io::stderr(), "{yellow}warning:{plain} {failure}");
    }

    /// As [`progress`](Self::progress), but only a spinner: for a command whose words are not the user's purpose.
    pub(crate) fn discreet_progress(&self, quiet: bool) -> Progress {
        match self.progress() {
            spinner @ Progress::Spinner(_) if !quiet => spinner,
            _ => Progress::Silent,
        }
    }

    /// Starts showing progress: a spinner on a terminal, else one line a step.
    pub(crate) fn progress(&self) -> Progress {
        if self.format == Format::Text && std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}").expect("a valid template"));
            bar.enable_steady_tick(Duration::from_millis(100));
            Progress::Spinner(bar)
        } else {
            Progress::Lines
        }
    }
}

/// Progress of one command. Disappears from a terminal when dropped.
pub(crate) enum Progress {
    /// On a terminal.
    Spinner(ProgressBar),
    /// Elsewhere.
    Lines,
    /// Nowhere.
    Silent,
}

impl Progress {
    /// The step that is going on now.
    pub(crate) fn step(&self, text: &str) {
        match self {
            Progress::Spinner(bar) => bar.set_message(text.to_owned()),
            Progress::Lines => eprintln!("{text}"),
            Progress::Silent => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Progress::Spinner(bar) = self {
            bar.finish_and_clear();
        }
    }
}
