//! Which process of a job this one is, as the program that started it says in environment variables.

use crate::{Error, Result, device::DeviceName};

/// Launchers other than torchrun tell no port: jobs take one by their number, as PyTorch Lightning does under Slurm.
const FIRST_PORT: u16 = 15_000;
const PORTS: u64 = 10_000;

/// Each process has a GPU of its own; here is what to write.
const OWN_GPUS: &str = "use --device cuda, which gives each process of a machine a GPU of its own";

/// What started the processes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// Nothing known: one process.
    None,
    /// `torchrun`, or whatever else sets its variables.
    Torchrun,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `srun`.
    Slurm,
}

/// This process among those of its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Its number, from 0.
    pub rank: usize,
    /// Processes in all, at least 1.
    pub size: usize,
    /// Its number among those of its machine, from 0: the one to choose a GPU by.
    pub local_rank: usize,
    /// Processes on its machine, where the launcher tells.
    pub local_size: Option<usize>,
    /// Host and port where the processes can find each other, where known: rank 0's.
    pub rendezvous: Option<(String, u16)>,
    /// The launcher's name for the job, where there is one.
    pub job: Option<String>,
    /// What started it.
    pub launcher: Launcher,
}

impl std::fmt::Display for Launcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "no launcher",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "mpirun",
            Self::Slurm => "srun",
        })
    }
}

impl Launch {
    /// A process of its own.
    pub fn alone() -> Self {
        Self {
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: Some(1),
            rendezvous: None,
            job: None,
            launcher: Launcher::None,
        }
    }

    /// The device that this process computes on where `asked` is what all processes were told: `cuda` is the GPU of the
    /// process's number on its machine.
    ///
    /// # Errors
    /// [`Error::Usage`] where all processes of a machine were told the same GPU.
    pub fn device(&self, asked: DeviceName) -> Result<DeviceName> {
        match asked {
            DeviceName::OwnCuda(_) => Ok(DeviceName::OwnCuda(self.local_rank)),
            DeviceName::Cuda(_) if self.local_rank > 0 || self.local_size.is_some_and(|size| size > 1) => {
                Err(Error::Usage(format!(
                    "--device {asked}: several processes of this machine would share one GPU; {OWN_GPUS}"
                )))
            }
            _ => Ok(asked),
        }
    }

    /// Reads the variables that `variable` looks up. The innermost launcher counts: torchrun's variables before Open MPI's, and those
    /// before Slurm's, since `mpirun` and `torchrun` are started by `srun`, not the other way round.
    ///
    /// A shell of `sbatch` or `salloc` has Slurm's variables too, but is one process whatever the number of tasks: only `srun`
    /// makes a step.
    ///
    /// # Errors
    /// [`Error::Usage`] naming a variable that is missing, no number, or contradicts another.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variables = Variables(&variable);
        if variables.has("RANK") || variables.has("WORLD_SIZE") {
            return variables.torchrun();
        }
        if variables.has("OMPI_COMM_WORLD_RANK") || variables.has("OMPI_COMM_WORLD_SIZE") {
            return variables.open_mpi();
        }
        let in_step = variables.has("SLURM_STEP_ID") || variables.has("SLURM_STEPID");
        if in_step && variables.has("SLURM_PROCID") {
            return variables.slurm();
        }
        Ok(Self::alone())
    }

    fn checked(self, rank: &str, size: &str) -> Result<Self> {
        if self.size == 0 {
            return Err(Error::Usage(format!("{size}=0: a job has at least one process")));
        }
        if self.rank >= self.size {
            return Err(Error::Usage(format!(
                "{rank}={} and {size}={}: ranks count from 0 and stay below the number of processes; start all processes \
                 by one launcher",
                self.rank, self.size
            )));
        }
        Ok(self)
    }
}

/// The environment; an empty variable counts as none.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn torchrun(&self) -> Result<Launch> {
        Launch {
            rank: self.required("RANK", "WORLD_SIZE")?,
            size: self.required("WORLD_SIZE", "RANK")?,
            local_rank: self.number("LOCAL_RANK")?.unwrap_or(0),
            local_size: self.number("LOCAL_WORLD_SIZE")?,
            rendezvous: self.torchrun_master()?,
            job: self.text("TORCHELASTIC_RUN_ID"),
            launcher: Launcher::Torchrun,
        }
        .checked("RANK", "WORLD_SIZE")
    }

    fn open_mpi(&self) -> Result<Launch> {
        let (rank, size) = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
        let processes = self.required(size, rank)?;
        let local_size = self.number("OMPI_COMM_WORLD_LOCAL_SIZE")?;
        let job = self.text("PMIX_NAMESPACE");
        // Nothing says where rank 0 is, unless all are here.
        let (host, port) = match local_size == Some(processes) {
            true => (Some("127.0.0.1".into()), job.as_deref().map(port_of_name)),
            false => (None, None),
        };
        Launch {
            rank: self.required(rank, size)?,
            size: processes,
            local_rank: self.number("OMPI_COMM_WORLD_LOCAL_RANK")?.unwrap_or(0),
            local_size,
            rendezvous: self.master(host, port)?,
            job,
            launcher: Launcher::OpenMpi,
        }
        .checked(rank, size)
    }

    fn slurm(&self) -> Result<Launch> {
        // A step may have fewer tasks than the job.
        let size = ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"];
        let size = size.into_iter().find(|name| self.has(name)).unwrap_or(size[0]);
        let nodes = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"];
        let host = nodes
            .into_iter()
            .find_map(|name| self.text(name).map(|list| (name, list)));
        let host = host.map(|(name, list)| first_host(name, &list)).transpose()?;
        let port = |job: usize| port_of_number(job as u64);
        let step = ["SLURM_STEP_ID", "SLURM_STEPID"]
            .into_iter()
            .find_map(|name| self.text(name));
        Launch {
            rank: self.required("SLURM_PROCID", size)?,
            size: self.required(size, "SLURM_PROCID")?,
            local_rank: self.number("SLURM_LOCALID")?.unwrap_or(0),
            local_size: None,
            rendezvous: self.master(host, self.number("SLURM_JOB_ID")?.map(port))?,
            job: self
                .text("SLURM_JOB_ID")
                .map(|job| format!("{job}.{}", step.unwrap_or_default())),
            launcher: Launcher::Slurm,
        }
        .checked("SLURM_PROCID", size)
    }

    /// torchrun's agent listens at `MASTER_PORT` itself, for a store that PyTorch's processes meet at, where it says so; then
    /// the port beside it is taken.
    fn torchrun_master(&self) -> Result<Option<(String, u16)>> {
        let agent_listens = self.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        let beside = |port: u16| port.checked_add(1).unwrap_or(port - 1);
        Ok(self.master(None, None)?.map(|(host, port)| match agent_listens {
            true => (host, beside(port)),
            false => (host, port),
        }))
    }

    /// Where the processes meet: `MASTER_ADDR` and `MASTER_PORT`, or what the launcher offers instead.
    fn master(&self, host: Option<String>, port: Option<u16>) -> Result<Option<(String, u16)>> {
        let host = self.text("MASTER_ADDR").or(host);
        let given = self.number("MASTER_PORT")?;
        let port = match given.map(u16::try_from) {
            None => port,
            Some(Ok(port)) if port > 0 => Some(port),
            Some(_) => {
                return Err(Error::Usage(format!(
                    "MASTER_PORT={}: a port is a number from 1 to 65535",
                    given.unwrap_or_default()
                )));
            }
        };
        Ok(host.zip(port))
    }

    fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name)
            .map(|text| text.trim().to_string())
            .filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Result<Option<usize>> {
        let parse = |text: String| {
            text.parse().map_err(|_| {
                Error::Usage(format!(
                    "{name}={text}: not a number; unset it or start by one launcher"
                ))
            })
        };
        self.text(name).map(parse).transpose()
    }

    fn required(&self, name: &str, because: &str) -> Result<usize> {
        self.number(name)?.ok_or_else(|| {
            Error::Usage(format!(
                "{because} is set without {name}: set both, or neither to train in one process"
            ))
        })
    }
}

/// The port of a job that has a number.
fn port_of_number(job: u64) -> u16 {
    FIRST_PORT + (job % PORTS) as u16
}

/// The port of a job that has a name.
fn port_of_name(job: &str) -> u16 {
    port_of_number(u64::from(crc32fast::hash(job.as_bytes())))
}

/// The first host of a Slurm list such as `login,node[03-05,9]-ib`.
fn first_host(name: &str, list: &str) -> Result<String> {
    let unreadable = || {
        Error::Usage(format!(
            "{name}={list}: no list of hosts; set MASTER_ADDR and MASTER_PORT"
        ))
    };
    let Some((prefix, rest)) = list.split_once('[') else {
        let host = list.split(',').next().unwrap_or_default();
        return if host.is_empty() {
            Err(unreadable())
        } else {
            Ok(host.into())
        };
    };
    if let Some((host, _)) = prefix.split_once(',') {
        return Ok(host.into());
    }
    let (numbers, after) = rest.split_once(']').ok_or_else(unreadable)?;
    let first = numbers.split([',', '-']).next().unwrap_or_default();
    if first.is_empty() {
        return Err(unreadable());
    }
    // The list may go on behind a suffix, and a name may have a second range.
    let rest_of_name = after.split(',').next().unwrap_or_default();
    match rest_of_name.contains('[') {
        true => first_host(name, &format!("{prefix}{first}{after}")),
        false => Ok(format!("{prefix}{first}{rest_of_name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Launch> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name);
        Launch::from_variables(|name| find(name).map(|(_, value)| value.to_string()))
    }

    fn refused(variables: &[(&str, &str)], words: &[&str]) {
        let error = launch(variables).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error:?}");
        for word in words {
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn no_launcher_is_one_process() {
        assert_eq!(launch(&[]).unwrap(), Launch::alone());
        assert_eq!(launch(&[("RANK", ""), ("PATH", "/bin")]).unwrap(), Launch::alone());
    }

    #[test]
    fn torchrun() {
        let variables = [
            ("RANK", "9"),
            ("WORLD_SIZE", "16"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "8"),
            ("GROUP_RANK", "1"),
            ("MASTER_ADDR", "node-a"),
            ("MASTER_PORT", "29500"),
        ];
        let expected = Launch {
            rank: 9,
            size: 16,
            local_rank: 1,
            local_size: Some(8),
            rendezvous: Some(("node-a".into(), 29500)),
            job: None,
            launcher: Launcher::Torchrun,
        };
        assert_eq!(launch(&variables).unwrap(), expected);
        // With torchrun's own agent at that port, the one beside it.
        let agent = [
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RUN_ID", "none"),
        ];
        let beside = launch(&[variables.as_slice(), &agent].concat()).unwrap();
        assert_eq!(beside.rendezvous, Some(("node-a".into(), 29501)));
        assert_eq!(beside.job.as_deref(), Some("none"));
        let last = [&agent[..1], &[("MASTER_PORT", "65535")], &variables[..6]].concat();
        assert_eq!(launch(&last).unwrap().rendezvous, Some(("node-a".into(), 65534)));
        let own = [variables.as_slice(), &[("TORCHELASTIC_USE_AGENT_STORE", "False")]].concat();
        assert_eq!(launch(&own).unwrap().rendezvous, Some(("node-a".into(), 29500)));
        // As Kubernetes' operators set it: one process a machine.
        let few = launch(&[("RANK", "1"), ("WORLD_SIZE", "2")]).unwrap();
        assert_eq!((few.rank, few.size, few.local_rank, few.rendezvous), (1, 2, 0, None));
        refused(&[("RANK", "1")], &["RANK is set without WORLD_SIZE"]);
        refused(&[("WORLD_SIZE", "2")], &["WORLD_SIZE is set without RANK"]);
        refused(&[("RANK", "2"), ("WORLD_SIZE", "2")], &["RANK=2", "WORLD_SIZE=2"]);
        refused(&[("RANK", "0"), ("WORLD_SIZE", "0")], &["WORLD_SIZE=0"]);
        refused(&[("RANK", "one"), ("WORLD_SIZE", "2")], &["RANK=one", "not a number"]);
        refused(&[("RANK", "-1"), ("WORLD_SIZE", "2")], &["RANK=-1", "not a number"]);
        for port in ["0", "70000"] {
            let variables = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_PORT", port)];
            refused(&variables, &["MASTER_PORT", port]);
        }
    }

    #[test]
    fn open_mpi() {
        let variables = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("OMPI_UNIVERSE_SIZE", "64"),
        ];
        let expected = Launch {
            rank: 3,
            size: 4,
            local_rank: 1,
            local_size: Some(2),
            rendezvous: None,
            job: None,
            launcher: Launcher::OpenMpi,
        };
        assert_eq!(launch(&variables).unwrap(), expected);
        // All on one machine: they meet there, at a port that the job's name decides.
        let here = |job: &'static str| {
            let mut all = variables.to_vec();
            all[3].1 = "4";
            all.push(("PMIX_NAMESPACE", job));
            launch(&all).unwrap().rendezvous.unwrap()
        };
        let (host, port) = here("2128936961");
        assert!(host == "127.0.0.1" && (15_000..25_000).contains(&port), "{host}:{port}");
        assert_eq!(here("2128936961").1, port);
        assert_ne!(here("2128936962").1, port);
        let told = [("MASTER_ADDR", "node-b"), ("MASTER_PORT", "4000")];
        let told = launch(&[variables.as_slice(), &told].concat()).unwrap();
        assert_eq!(told.rendezvous, Some(("node-b".into(), 4000)));
        refused(
            &variables[..1],
            &["OMPI_COMM_WORLD_RANK is set without OMPI_COMM_WORLD_SIZE"],
        );
    }

    #[test]
    fn slurm() {
        let job = [
            ("SLURM_JOB_ID", "3441234"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_PROCID", "0"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_JOB_NODELIST", "node[03-05,9]"),
            ("SLURM_NODEID", "0"),
        ];
        // What a script of sbatch has before any srun.
        assert_eq!(launch(&job).unwrap(), Launch::alone());
        let step = |more: &[(&'static str, &'static str)]| [more, &job].concat();
        let in_step = step(&[
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_STEP_NODELIST", "node[04-05]"),
            ("SLURM_PROCID", "2"),
            ("SLURM_LOCALID", "1"),
        ]);
        let expected = Launch {
            rank: 2,
            size: 4,
            local_rank: 1,
            local_size: None,
            rendezvous: Some(("node04".into(), 15_000 + 1234)),
            job: Some("3441234.0".into()),
            launcher: Launcher::Slurm,
        };
        assert_eq!(launch(&in_step).unwrap(), expected);
        // An older Slurm names the tasks of the job alone, and the user may choose where to meet.
        let old = step(&[("SLURM_STEPID", "0"), ("MASTER_ADDR", "head"), ("MASTER_PORT", "1000")]);
        let old = launch(&old).unwrap();
        assert_eq!((old.size, old.rendezvous), (8, Some(("head".into(), 1000))));
        refused(
            &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1")],
            &["SLURM_PROCID is set without SLURM_STEP_NUM_TASKS"],
        );
    }

    #[test]
    fn each_process_of_a_machine_has_a_gpu_of_its_own() {
        let of = |local_rank: &'static str, local_size: &'static str| {
            let local = [("LOCAL_RANK", local_rank), ("LOCAL_WORLD_SIZE", local_size)];
            launch(&[&[("RANK", "5"), ("WORLD_SIZE", "8")], local.as_slice()].concat()).unwrap()
        };
        let own: DeviceName = "cuda".parse().unwrap();
        assert_eq!(of("3", "4").device(own).unwrap(), DeviceName::OwnCuda(3));
        assert_eq!(of("0", "1").device(own).unwrap(), DeviceName::OwnCuda(0));
        assert_eq!(of("3", "4").device(DeviceName::Cpu).unwrap(), DeviceName::Cpu);
        // One process a machine may choose.
        assert_eq!(of("0", "1").device(DeviceName::Cuda(2)).unwrap(), DeviceName::Cuda(2));
        for process in [of("0", "2"), of("1", "2"), of("1", "")] {
            let error = process.device(DeviceName::Cuda(0)).unwrap_err().to_string();
            assert!(
                error.contains("--device cuda:0") && error.contains("use --device cuda,"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_innermost_launcher_counts() {
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_NTASKS", "2")];
        let mpi = [("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "6")];
        let torchrun = [("RANK", "7"), ("WORLD_SIZE", "8")];
        assert_eq!(launch(&slurm).unwrap().launcher, Launcher::Slurm);
        assert_eq!(launch(&[slurm.as_slice(), &mpi].concat()).unwrap().rank, 5);
        assert_eq!(launch(&[slurm.as_slice(), &mpi, &torchrun].concat()).unwrap().rank, 7);
    }

    #[test]
    fn first_hosts_of_slurm_lists() {
        for (list, host) in [
            ("node", "node"),
            ("a,b", "a"),
            ("node[03-05,9]", "node03"),
            ("node[9,03-05]", "node9"),
            ("login,node[1-2]", "login"),
            ("rack[1-2]n[07-08]", "rack1n07"),
            ("node[12]-ib,other", "node12-ib"),
            ("cn-3-[101-104],x[1-2]", "cn-3-101"),
        ] {
            assert_eq!(first_host("LIST", list).unwrap(), host, "{list}");
        }
        for list in ["node[", "node[]", ",a"] {
            assert!(first_host("LIST", list).is_err(), "{list}");
        }
    }
}
