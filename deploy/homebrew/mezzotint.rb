# Builds Mezzotint from a checkout: its versions are those of constraints.txt, which stand
# nowhere else, so there are no resources to keep in step. In the checkout:
#
#   brew tap-new local/mezzotint --no-git
#   cp deploy/homebrew/mezzotint.rb "$(brew --repository local/mezzotint)/Formula/"
#   HOMEBREW_MEZZOTINT_CHECKOUT="$PWD" brew install --HEAD local/mezzotint/mezzotint
class Mezzotint < Formula # rubocop:disable FormulaAudit/Homepage -- it has none
  desc "Turn requests into pictures, the same bytes at any load"
  license "Apache-2.0"
  head "file://#{ENV.fetch("HOMEBREW_MEZZOTINT_CHECKOUT", Dir.pwd)}", using: :git, branch: "main"

  depends_on "python@3.13"

  on_macos do
    depends_on arch: :arm64 # torch has no wheels for Intel
    depends_on macos: :sonoma
  end

  def install
    system Formula["python@3.13"].opt_bin/"python3.13", "-m", "venv", libexec
    system libexec/"bin/python", "-m", "pip", "install", "--disable-pip-version-check",
           "--no-cache-dir", "--constraint", "constraints.txt", "."
    bin.install_symlink libexec/"bin/mezzotint"
    generate_completions_from_executable(bin/"mezzotint", "completion",
                                         shells: [:bash, :zsh, :fish], shell_parameter_format: :none)
  end

  service do
    run [opt_bin/"mezzotint", "serve"]
    keep_alive true
    log_path var/"log/mezzotint.log"
    error_log_path var/"log/mezzotint.log"
  end

  test do
    ENV["MEZZOTINT_HOME"] = testpath
    picture = testpath/"apple.png"
    system bin/"mezzotint", "generate", "a red apple", "--seed", "7", "-o", picture
    assert_match "identical", shell_output("#{bin}/mezzotint verify #{picture}")
  end
end
