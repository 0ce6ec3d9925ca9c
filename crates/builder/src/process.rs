//! A program with all that it starts: ended together when nobody wants its result any more.

use std::{io, process::ExitStatus, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// How long a program may tidy up after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

pub struct Group {
    child: Option<Child>,
    after: Option<Box<dyn FnOnce() + Send>>,
}

impl Group {
    /// Starts it with all three streams piped.
    pub fn spawn(mut command: Command) -> io::Result<Group> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Dropping is dealt with here: git removes a half-received push when it is asked to end.
        let child = command.process_group(0).kill_on_drop(false).spawn()?;
        Ok(Group {
            child: Some(child),
            after: None,
        })
    }

    /// To be done when the program has ended, in whichever way. Must not block for long.
    pub fn after(&mut self, after: impl FnOnce() + Send + 'static) {
        self.after = Some(Box::new(after));
    }

    /// Can be taken once.
    pub fn streams(&mut self) -> (ChildStdin, ChildStdout, ChildStderr) {
        let child = self
            .child
            .as_mut()
            .expect("a group has its child until it has ended");
        let taken = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr)) = taken else {
            panic!("the streams are taken once")
        };
        (stdin, stdout, stderr)
    }

    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.as_mut().expect("waited for once").wait().await?;
        self.child = None;
        if let Some(after) = self.after.take() {
            after();
        }
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let after = self.after.take();
        // Not reaped yet, so the id is still this child's.
        let Some(leader) = child.id().and_then(|id| Pid::from_raw(id as i32)) else {
            return;
        };
        let _ = kill_process_group(leader, Signal::TERM);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let _ = kill_process_group(leader, Signal::KILL);
            return;
        };
        runtime.spawn(async move {
            if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                let _ = kill_process_group(leader, Signal::KILL);
                let _ = child.wait().await;
            }
            if let Some(after) = after {
                after();
            }
        });
    }
}
