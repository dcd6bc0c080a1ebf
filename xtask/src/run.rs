//! Running other programs: errors that say what was run and what it said, and a sign of life while one takes long.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Starts `command`; an error names the program.
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Runs `command` to its end and returns what it wrote to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let child = start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    said(command, child.wait_with_output()?)
}

/// Runs `command` with `text` on its standard input.
pub(crate) fn feed(command: &mut Command, text: &str) -> Result<String> {
    let mut child = start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early says why on its standard error.
        stdin.write_all(text.as_bytes()).ok();
    }
    said(command, child.wait_with_output()?)
}

fn said(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{} failed ({}):\n{}{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command` with its output on the terminal; a failure is an error.
pub(crate) fn visibly(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs `command` with its output on the terminal.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    Ok(start(command.stdin(Stdio::null()))?.wait()?)
}

/// Does `work`, saying what it is: one line when it is quick, another every ten seconds when it is not.
pub(crate) fn step<T: Send>(what: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let begin = Instant::now();
    let (done, wait) = channel::<()>();
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut pause = Duration::from_secs(1);
            while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(pause) {
                println!("{what} … {:.0} s", begin.elapsed().as_secs_f32());
                pause = Duration::from_secs(10);
            }
        });
        let result = work();
        drop(done);
        result
    });
    let result = result.with_context(|| what.to_owned())?;
    println!("{what}: ok ({:.1} s)", begin.elapsed().as_secs_f32());
    Ok(result)
}

/// Asks `holds` again and again until it says yes.
pub(crate) fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !holds()? {
        if begin.elapsed() > limit {
            bail!("{what} did not happen within {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
