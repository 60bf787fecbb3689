# What a real Windows has to show, because nothing else can: run it on one, as an
# administrator, with fleet.exe and the token of a fleet that can be reached.
#
#   .\windows-acceptance.ps1 -Fleet .\fleet.exe -TokenFile .\token
#
# It enrols this host in a directory of its own, runs the agent in the
# foreground and as a service, which it removes, and with a context in
# -Credential also runs commands through the fleet. It prints PASS, FAIL or SKIP for each check, and ends with 1 when one
# failed. It was written without a Windows to try it on.
param(
    [Parameter(Mandatory = $true)][string]$Fleet,
    [Parameter(Mandatory = $true)][string]$TokenFile,
    [string]$Credential = "",
    [string]$Tests = "",       # directory with the test programs: GOOS=windows go test -c -o DIR ./node/process ./node/private ./node/journal
    [string]$Data = "$env:ProgramData\fleet-acceptance",
    [string]$Listen = ":7790"
)
$ErrorActionPreference = "Stop"
$script:failed = 0
$name = "acceptance-" + (Get-Random)

function Check([string]$what, [scriptblock]$test) {
    try {
        $ok = & $test
        if (@($ok)[-1] -eq $true) { Write-Output "PASS $what"; return }
        Write-Output "FAIL $what"
    } catch {
        Write-Output "FAIL ${what}: $_"
    }
    $script:failed++
}

function Skip([string]$what, [string]$why) { Write-Output "SKIP ${what}: $why" }

# Fleet with an operator's credential; what it printed, and $LASTEXITCODE.
function Operator { & $Fleet @args 2>&1 | Out-String }

$admin = ([Security.Principal.WindowsPrincipal][Security.Principal.WindowsIdentity]::GetCurrent()).IsInRole(
    [Security.Principal.WindowsBuiltInRole]::Administrator)
Check "runs as an administrator" { $admin }
Check "fleet version" { & $Fleet version | Out-Null; $LASTEXITCODE -eq 0 }

if ($Tests) {
    foreach ($t in Get-ChildItem -Path $Tests -Filter *.test.exe) {
        Check "tests of $($t.BaseName)" { & $t.FullName | Out-Host; $LASTEXITCODE -eq 0 }
    }
} else { Skip "tests of the packages" "name -Tests" }

Check "join with a token" {
    & $Fleet join --token-file $TokenFile --node-name $name --data-dir $Data --listen $Listen --enroll-only | Out-Host
    $LASTEXITCODE -eq 0
}
Check "keys are for SYSTEM and the administrators" {
    $me = [Security.Principal.WindowsIdentity]::GetCurrent().User.Value
    $allowed = @("S-1-5-18", "S-1-5-32-544", $me)
    $rules = (Get-Acl "$Data\keys\agent.key").GetAccessRules($true, $true, [Security.Principal.SecurityIdentifier])
    @($rules | Where-Object { $allowed -notcontains $_.IdentityReference.Value }).Count -eq 0
}

$agent = Start-Process -FilePath $Fleet -PassThru -NoNewWindow -ArgumentList "agent", "--data-dir", "`"$Data`"", "--listen", $Listen `
    -RedirectStandardError "$env:TEMP\fleet-acceptance.log"
try {
    Check "the agent gets ready" {
        foreach ($i in 1..60) {
            if (Select-String -Quiet -Path "$env:TEMP\fleet-acceptance.log" -Pattern "agent ready") { return $true }
            Start-Sleep -Seconds 1
        }
        $false
    }
    Check "the agent answers here" { & $Fleet status --socket "$Data\fleet.sock" | Out-Host; $LASTEXITCODE -eq 0 }

    if ($Credential) {
        $env:FLEET_CONTEXT = $Credential
        Check "a command by PowerShell" { (Operator run $name -- "Write-Output hello-from-windows") -match "hello-from-windows" }
        Check "its exit code" { Operator run $name -- "exit 3" | Out-Null; $LASTEXITCODE -ne 0 }
        Check "text that is not ASCII" { (Operator run $name -- "Write-Output ([int][char]'$([char]0xE9)')") -match "233" }
        Check "a tree ends at the timeout" {
            $marker = "fleet-tree-" + (Get-Random)
            Operator run --timeout 5s $name -- "cmd /c `"title $marker & ping -n 600 127.0.0.1 & rem $marker`"" | Out-Null
            Start-Sleep -Seconds 2
            @(Get-CimInstance Win32_Process | Where-Object { $_.CommandLine -like "*$marker*" -and $_.ProcessId -ne $PID }).Count -eq 0
        }
        Check "nothing is left of a command when the agent is killed" {
            $marker = "fleet-kill-" + (Get-Random)
            $find = { @(Get-CimInstance Win32_Process | Where-Object { $_.CommandLine -like "*$marker*" -and $_.Name -ne "fleet.exe" }).Count }
            $run = Start-Process -PassThru -NoNewWindow -FilePath $Fleet -ArgumentList "run", $name, "--", "`"cmd /c 'ping -n 600 127.0.0.1 & rem $marker'`""
            foreach ($i in 1..30) { if ((& $find) -gt 0) { break }; Start-Sleep -Seconds 1 }
            $began = & $find
            Stop-Process -Force -Id $agent.Id
            Start-Sleep -Seconds 2
            Stop-Process -Force -Id $run.Id -ErrorAction SilentlyContinue
            $began -gt 0 -and (& $find) -eq 0
        }
    } else { Skip "commands through the fleet" "name a context of an operator with -Credential" }

} finally {
    Stop-Process -Force -Id $agent.Id -ErrorAction SilentlyContinue
}

# The service, with its program in Program Files and its events. It reads a file
# of its own, in the data directory that is removed in the end.
$program = Join-Path ([Environment]::GetFolderPath("ProgramFiles")) "fleet\fleet.exe"
$events = @{ LogName = "Application"; ProviderName = "fleet" }
function Ready { # the service says that it runs, and the agent answers
    foreach ($i in 1..60) {
        & $Fleet status --socket "$Data\fleet.sock" 2>&1 | Out-Null
        if ($LASTEXITCODE -eq 0 -and (Get-Service fleet).Status -eq "Running") { return $true }
        Start-Sleep -Seconds 1
    }
    $false
}
if (Get-Service fleet -ErrorAction SilentlyContinue) {
    Skip "service" "this host has a service fleet already"
} else {
    $before = Get-Date
    try {
        Check "service: install" {
            $env:FLEET_CONFIG = "$Data\fleet.yaml" # --config names only a file that is there
            & $Fleet agent --service --data-dir $Data --listen $Listen | Out-Host
            $installed = $LASTEXITCODE -eq 0
            Remove-Item Env:FLEET_CONFIG
            $installed
        }
        Check "service: starts at boot, after Tcpip" {
            $s = Get-Service fleet
            $s.StartType -eq "Automatic" -and @($s.ServicesDependedOn | ForEach-Object { $_.Name }) -contains "Tcpip"
        }
        Check "service: its program is a copy that only administrators change, and its path is quoted" {
            $users = "S-1-5-32-545", "S-1-1-0", "S-1-5-11"
            $write = [Security.AccessControl.FileSystemRights]"WriteData,AppendData,Delete,ChangePermissions,TakeOwnership"
            $loose = (Get-Acl $program).GetAccessRules($true, $true, [Security.Principal.SecurityIdentifier]) |
                Where-Object { $users -contains $_.IdentityReference.Value -and ($_.FileSystemRights -band $write) }
            @($loose).Count -eq 0 -and (Get-CimInstance Win32_Service -Filter "Name='fleet'").PathName.StartsWith("`"$program`" agent")
        }
        Check "service: ready" { Ready }
        Check "event log: the agent's start, as information" {
            @(Get-WinEvent -FilterHashtable ($events + @{ StartTime = $before; Level = 4; Id = 1 }) |
                Where-Object { $_.Message -like "*agent started*" }).Count -gt 0
        }
        Check "service: stop, in order" {
            Stop-Service fleet
            $s = Get-CimInstance Win32_Service -Filter "Name='fleet'"
            $s.State -eq "Stopped" -and $s.ExitCode -eq 0
        }
        Check "event log: the agent's end" {
            @(Get-WinEvent -FilterHashtable ($events + @{ StartTime = $before }) | Where-Object { $_.Message -like "*agent stops*" }).Count -gt 0
        }
        Check "service: start" { Start-Service fleet; Ready }
        Check "service: restart" { Restart-Service fleet; Ready }
        Check "service: started again after a crash" {
            $old = (Get-CimInstance Win32_Service -Filter "Name='fleet'").ProcessId
            Stop-Process -Force -Id $old
            Start-Sleep -Seconds 10
            (Ready) -and (Get-CimInstance Win32_Service -Filter "Name='fleet'").ProcessId -ne $old
        }
        Check "service: an error of its start is an event" {
            Stop-Service fleet
            $yaml = Get-Content -Raw "$Data\fleet.yaml"
            Set-Content "$Data\fleet.yaml" "no-such-key: 1"
            $since = Get-Date
            try { Start-Service fleet } catch { } # it is the failure that is looked for
            Start-Sleep -Seconds 5
            sc.exe stop fleet | Out-Null # that it is not started again meanwhile
            Set-Content -NoNewline "$Data\fleet.yaml" $yaml
            @(Get-WinEvent -FilterHashtable ($events + @{ StartTime = $since; Level = 2; Id = 3 })).Count -gt 0
        }
    } finally {
        # "fleet uninstall" when there is one; until then as an administrator does it.
        & $Fleet uninstall --help 2>&1 | Out-Null
        if ($LASTEXITCODE -eq 0) {
            Check "service: uninstall" {
                & $Fleet uninstall --yes --config "$Data\fleet.yaml" | Out-Host
                $LASTEXITCODE -eq 0 -and -not (Get-Service fleet -ErrorAction SilentlyContinue) -and -not (Test-Path $program) -and
                    -not (Test-Path "HKLM:\SYSTEM\CurrentControlSet\Services\EventLog\Application\fleet")
            }
        } else {
            Skip "service: uninstall" "this fleet.exe has no uninstall command; the service is removed with sc.exe"
            Stop-Service fleet -ErrorAction SilentlyContinue
            sc.exe delete fleet | Out-Null
            Remove-EventLog -Source fleet -ErrorAction SilentlyContinue
            Remove-Item -Recurse -Force (Split-Path $program) -ErrorAction SilentlyContinue
        }
    }
}

if (Test-Path $Data) { Remove-Item -Recurse -Force $Data }
Check "the data directory can be removed" { -not (Test-Path $Data) }

Write-Output "$script:failed failed"
if ($script:failed -gt 0) { exit 1 }
exit 0
